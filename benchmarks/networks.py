"""Images per second of a backbone alone, on ready pixels: as Firn compiles it, and in OpenVINO."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.images import read_pixels
from featurize.backbones.backbone import load_backbone
from featurize.backbones.keras_network import preprocess, set_threads
from featurize.backbones.spec import BackboneSpec

BATCH = 32
CORES = len(os.sched_getaffinity(0))
_WARM_BATCHES = 4


def measure_bare(spec: BackboneSpec, path: str, *, sha256: str, files: Sequence[Path], batches: int) -> dict[str, Any]:
    """The compiled network on all cores, in the precision of `spec`."""
    set_threads(CORES)
    forward = load_backbone(spec, path, sha256=sha256)
    return {"images_per_second": _rate(forward, lambda: None, _ready_batches(spec, files), batches)}


def measure_openvino(spec: BackboneSpec, path: str, *, files: Sequence[Path], batches: int) -> dict[str, Any]:
    """OpenVINO in bfloat16, in the faster of two ways: one request on all cores, or several on some of the cores each."""
    import keras
    import openvino

    network = keras.saving.load_model(path, compile=False)
    pixels = keras.Input((spec.height, spec.width, 3), BATCH, dtype="uint8")
    whole = keras.Model(pixels, network(preprocess(keras.ops.cast(pixels, "float32"), spec.preprocessing)))
    ready = _ready_batches(spec, files)
    rates = {}
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        whole.export(folder, verbose=False)
        for hint in ("LATENCY", "THROUGHPUT"):
            config = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": CORES}
            compiled = openvino.compile_model(openvino.convert_model(folder), "CPU", config)
            queue = openvino.AsyncInferQueue(compiled)
            rates[hint] = _rate(queue.start_async, queue.wait_all, ready, batches)
    return {"images_per_second": max(rates.values()), "by_hint": rates}


def _ready_batches(spec: BackboneSpec, files: Sequence[Path]) -> list[NDArray[np.uint8]]:
    pixels = read_pixels(files, height=spec.height, width=spec.width)
    return [pixels[i : i + BATCH] for i in range(0, len(pixels) - BATCH + 1, BATCH)]


def _rate(
    submit: Callable[[NDArray[np.uint8]], Any],
    finish: Callable[[], None],
    ready: Sequence[NDArray[np.uint8]],
    batches: int,
) -> float:
    """Images per second, warm; `finish` waits for what was submitted."""
    for i in range(_WARM_BATCHES):
        submit(ready[i % len(ready)])
    finish()
    started = perf_counter()
    for i in range(batches):
        submit(ready[i % len(ready)])
    finish()
    return batches * BATCH / (perf_counter() - started)
