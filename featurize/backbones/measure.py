"""How fast each engine computes a backbone on this processor, and whether its features are the same: each in its own process.

A process of its own keeps the libraries out of the worker, and an engine that crashes there is only left out.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat, takewhile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.backbones.backbone import OpenedBackbone, QuantizedBackbone, load_backbone
from featurize.backbones.keras_network import set_threads
from featurize.backbones.spec import BackboneSpec
from featurize.digests import sha256_file
from featurize.engines.engine import Engine, can_compute
from featurize.engines.measurement import Measurement, fastest_first
from featurize.engines.pieces import BATCHES_AT_ONCE, passes_at_once
from featurize.engines.precision import Forward, Precision, mean_cosine, probe_images
from featurize.errors import JobError, first_line
from featurize.map_ahead import map_ahead

BATCHES = (8, 32)
"""Images in a pass of all cores, as tried."""
_PER_CORE = (4, 16)  # images in a pass of one core; the second only where the first is slower than a pass of all cores
Way = tuple[int, int | None]
"""Images that are computed together, and in a pass of one core; None: all cores compute one pass."""
_ROUND_S = 1.0  # how long each is repeated
_LONGEST_PASS_S = 3.0  # slower networks are not tried with larger batches
_TIMEOUT_S = 300.0
_RUN = "from featurize.backbones.measure import measure_here; measure_here()"
NO_BFLOAT16 = "the processor has no bfloat16"


@dataclass(frozen=True)
class Candidate:
    """An engine to try, and the name of the file that it computes."""

    engine: Engine
    precision: Precision
    file: str
    sha256: str


def list_candidates(
    opened: OpenedBackbone, precisions: Callable[[Engine], Sequence[Precision]]
) -> tuple[list[Candidate], dict[str, Path]]:
    """What to try for a backbone, the reference first: TensorFlow for a network of Keras, else ONNX Runtime.

    Of a backbone in int8 these are the other precisions of OpenVINO and ONNX Runtime as well, to compare it with.

    Args:
        opened: the backbone; its files are written to its folder, under names that their content determines.
        precisions: those to try of an engine.

    Returns:
        The candidates, and their files by name.
    """
    files: dict[str, tuple[Path, str]] = {}  # by what they are for, with the digest
    candidates: list[Candidate] = []

    def add(made_by: OpenedBackbone, kind: str, engine: Engine, tried: Sequence[Precision]) -> None:
        if kind not in files:
            path = made_by.file(engine)
            digest = sha256_file(path)
            files[kind] = path.rename(path.with_name(f"measured-{digest[:16]}{path.suffix}")), digest
        path, digest = files[kind]
        candidates.extend(Candidate(engine, precision, path.name, digest) for precision in tried)

    for engine in opened.engines():
        if isinstance(opened, QuantizedBackbone):
            add(opened.base, "onnx", engine, precisions(engine))
            add(opened, "int8", engine, ("int8",))
        else:
            add(opened, "keras" if engine == "tensorflow" else "onnx", engine, precisions(engine))
    candidates.sort(key=lambda one: (one.precision == "int8", one.engine == "openvino", one.precision == "bfloat16"))
    return candidates, {path.name: path for path, _ in files.values()}


def measure_engines(
    spec: BackboneSpec, candidates: Sequence[Candidate], files: Mapping[str, Path], *, threads: int
) -> tuple[Measurement, ...]:
    """Tries engines one after the other, with the cores of a task; the best comes first.

    Args:
        spec: the backbone.
        candidates: what to try; the first is the reference, in float32.
        files: the local files by name.
        threads: number of cores.
    """
    measured = []
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        images = Path(folder) / "images.npy"
        np.save(images, probe_images(height=spec.height, width=spec.width))
        reference = None
        for number, candidate in enumerate(candidates):
            features_file = Path(folder) / f"{number}.npy"
            request = {
                "spec": replace(spec, engine=candidate.engine, precision=candidate.precision).as_dict(),
                "path": str(files[candidate.file]),
                "sha256": candidate.sha256,
                "threads": threads,
                "images": str(images),
                "features": str(features_file),
            }
            answer = _ask(request)
            if "error" in answer:
                measured.append(
                    Measurement(candidate.engine, candidate.precision, BATCHES[0], 0.0, 0.0, answer["error"])
                )
                continue
            features = np.load(features_file)
            reference = features if reference is None else reference
            cosine = mean_cosine(reference, features) if features.shape == reference.shape else 0.0
            size, per_core, rate = max(answer["rates"], key=lambda one: float(one[-1]))
            figures = (round(rate, 2), round(cosine, 6))
            measured.append(Measurement(candidate.engine, candidate.precision, size, *figures, per_core=per_core))
    return fastest_first(measured)


def ways_of(engine: Engine, threads: int) -> list[Way]:
    """The ways to try in which `threads` cores compute images; all cores together first."""
    together: list[Way] = [(size, None) for size in BATCHES]
    if engine == "tensorflow":
        return together
    return together + [(max(BATCHES[-1], size * passes_at_once(threads)), size) for size in _PER_CORE]


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _RUN],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {_TIMEOUT_S:g} s"}
    lines = ended.stdout.strip().splitlines()
    if ended.returncode or not lines:
        complaint = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        return {"error": complaint}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def measure_here() -> None:
    """The whole work of such a process: a request on standard input, an answer on standard output."""
    request = json.loads(sys.stdin.read())
    try:
        answer = _measure(request)
    except (JobError, RuntimeError, ValueError, ImportError, OSError) as error:
        answer = {"error": first_line(error)}
    print(json.dumps(answer))


def _measure(request: Mapping[str, Any]) -> dict[str, Any]:
    spec = BackboneSpec.from_dict(request["spec"])
    if not can_compute(spec.engine, spec.precision):
        return {"error": NO_BFLOAT16}
    threads = int(request["threads"])
    if spec.engine == "tensorflow":
        set_threads(threads)
    images = np.load(request["images"])
    rates: list[tuple[int, int | None, float]] = []
    for size, per_core in ways_of(spec.engine, threads):
        if rates and not _is_worth_trying(size, rates):
            break
        forward = load_backbone(
            spec, request["path"], sha256=request["sha256"], threads=threads, batch_size=size, per_core=per_core
        )
        batch = np.resize(images, (size, *images.shape[1:]))
        features = forward(batch)
        if not rates:
            rest = [forward(images[start : start + size]) for start in range(size, len(images), size)]
            np.save(request["features"], np.concatenate([features, *rest])[: len(images)])
        rates.append((size, per_core, _rate(forward, batch, at_once=BATCHES_AT_ONCE if per_core else 1)))
    return {"rates": rates}


def _is_worth_trying(size: int, rates: Sequence[tuple[int, int | None, float]]) -> bool:
    """Whether `size` images do not take too long, and the last way was not the best already with few images per core."""
    _, per_core, rate = rates[-1]
    return size / rate <= _LONGEST_PASS_S and (per_core is None or rate < max(each[-1] for each in rates))


def _rate(forward: Forward, batch: NDArray[np.uint8], *, at_once: int) -> float:
    """Images per second, where so many passes over `batch` are computed at once."""
    started, passes = perf_counter(), 0
    batches = takewhile(lambda _: perf_counter() - started < _ROUND_S, repeat(batch))
    for _ in map_ahead(forward, batches, threads=at_once, ahead=at_once):
        passes += 1
    return passes * len(batch) / (perf_counter() - started)
