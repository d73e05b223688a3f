"""Rows per second of `finetune.training.loop.fit` by batch size and ranks, and where the time goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from featurize.backbones.keras_network import set_threads
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.training_section import TrainingSettings
from finetune.rows.splits import SplitData

BATCHES = (32, 64, 128, 256, 512, 1024)
EPOCHS = 4  # the first, which compiles, is not counted
LEAST_STEPS = 4  # in an epoch


@dataclass(frozen=True)
class Net:
    """A network to train: `name`, on rows of `shape`, at least `rows` in an epoch."""

    name: str
    shape: tuple[int, ...]
    n_classes: int
    rows: int

    @property
    def dtype(self) -> str:
        return "float32" if len(self.shape) == 1 else "uint8"


NETS = {
    "1,024 x 102 head": Net("softmax_head", (1024,), 102, 16_384),
    "4,096 x 257 head": Net("softmax_head", (4096,), 257, 8_192),
    "mnist_convnet": Net("mnist_convnet", (28, 28, 1), 10, 4_096),
    "landscapes_convnet": Net("landscapes_convnet", (75, 75, 3), 4, 2_048),
}
WAYS = {"1 rank, 1 thread": (1, False), "1 rank, all cores": (1, True), "2 ranks, 1 thread each": (2, False)}
"""The number of ranks, and whether each has all cores."""
ONE, ALL, TWO = WAYS
GOALS = (("mnist_convnet", 64), ("landscapes_convnet", 64), ("4,096 x 257 head", 512))
PARTS = ("data", "compute", "all_reduce", "idle")


def measure_rates(
    nets: Sequence[str], batches: Sequence[int], *, threads: int, rows: int | None = None
) -> list[dict[str, Any]] | None:
    """Worker side: trains each network with each batch size, on the current ranks. None on ranks other than 0.

    Args:
        rows: number of rows in an epoch; default: that of the network.
    """
    from finetune.ranks.horovod_ranks import launched_by_horovodrun, open_ranks

    with open_ranks(distributed=launched_by_horovodrun()) as ranks:
        set_threads(threads)
        cells = [
            {"net": name, "batch_size": batch, **_measure_cell(NETS[name], batch, ranks, rows or NETS[name].rows)}
            for name in nets
            for batch in batches
        ]
        return cells if ranks.rank == 0 else None


def _measure_cell(net: Net, batch: int, ranks: Any, rows: int) -> dict[str, Any]:
    from finetune.networks.build import build_model
    from finetune.networks.input_statistics import collect_statistics, needs_statistics
    from finetune.rows.loader import MemoryData
    from finetune.training.loop import TIMES, fit

    data = _made_up(net, max(rows, LEAST_STEPS * batch * ranks.size))
    settings = ModelSettings(name=net.name, url="nowhere")
    statistics = collect_statistics([data.features], settings) if needs_statistics(settings, net.dtype) else None
    model = build_model(
        settings,
        feature_shape=net.shape,
        feature_dtype=net.dtype,
        n_classes=net.n_classes,
        seed=1,
        statistics=statistics,
    )
    training = TrainingSettings(batch_size=batch, epochs=EPOCHS, learning_rate=1e-4)
    result = fit(model, MemoryData(data), MemoryData(_made_up(net, 0)), training, ranks=ranks)
    entries = sorted(result.history[1:], key=lambda entry: entry["rows_per_second"])
    middle = entries[len(entries) // 2]
    seconds = {part: middle[time] for part, time in zip(PARTS, TIMES, strict=True)}
    total = data.rows / middle["rows_per_second"]
    return {
        "rows_per_second": middle["rows_per_second"],
        "ms_per_step": 1000 * total * batch * ranks.size / data.rows,
        "parts": {part: spent / total for part, spent in seconds.items()},
    }


def _made_up(net: Net, rows: int) -> SplitData:
    random = np.random.default_rng(0)
    if net.dtype == "uint8":
        features: Any = random.integers(0, 256, (rows, *net.shape), np.uint8)
    else:
        features = np.maximum(random.standard_normal((rows, *net.shape), np.float32), 0)
    labels = random.integers(0, net.n_classes, rows).astype(np.int32)
    return SplitData(features, labels, pa.nulls(rows, pa.large_string()), np.arange(rows, dtype=np.int64))


def summarize(rounds: Sequence[Sequence[dict[str, Any]]]) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """For each cell (network, batch size, way) the round of median rate; and the ratios for the goals in each round."""
    rates = [{(cell["net"], cell["batch_size"], cell["way"]): cell for cell in cells} for cells in rounds]
    middle = []
    for key in rates[0]:
        ranked = sorted((cells[key] for cells in rates), key=lambda cell: float(cell["rows_per_second"]))
        middle.append(ranked[len(ranked) // 2])
    ratios = {
        f"{net}, batch {batch}": [
            cells[net, batch, TWO]["rows_per_second"] / cells[net, batch, ONE]["rows_per_second"] for cells in rates
        ]
        for net, batch in GOALS
        if (net, batch, TWO) in rates[0]
    }
    return middle, ratios


def goals_met(ratios: dict[str, list[float]]) -> dict[str, bool]:
    return {f"2 ranks >= 1.6 of 1: {name}": median(values) >= 1.6 for name, values in ratios.items()}


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """The table for the docs."""
    found = {(cell["net"], cell["batch_size"], cell["way"]): cell for cell in cells}
    lines = [
        "| | batch of a rank | "
        + " | ".join(WAYS)
        + " | 2 ranks over 1 of 1 thread | their time: compute, all-reduce, idle, data |",
        "|---|---|---|---|---|---|---|",
    ]
    for net, batch in dict.fromkeys((cell["net"], cell["batch_size"]) for cell in cells):
        rates = {way: found[net, batch, way]["rows_per_second"] for way in WAYS}
        parts = found[net, batch, TWO]["parts"]
        split = ", ".join(f"{parts[part]:.0%}" for part in ("compute", "all_reduce", "idle", "data"))
        columns = [
            net,
            str(batch),
            *(f"{rate:,.0f}" for rate in rates.values()),
            f"{rates[TWO] / rates[ONE]:.2f}",
            split,
        ]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)
