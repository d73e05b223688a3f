"""Which programs can compute a network here, and how one is loaded from an ONNX file."""

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featurize.engines.pieces import in_pieces, passes_at_once
from featurize.engines.precision import Forward, Precision, has_bfloat16
from featurize.errors import JobError, UsageError, first_line

Engine = Literal["tensorflow", "openvino", "onnxruntime"]
ENGINES: tuple[Engine, ...] = ("tensorflow", "openvino", "onnxruntime")
NAMES: dict[Engine, str] = {"tensorflow": "TensorFlow", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
_DISTRIBUTIONS = {
    "tensorflow": ("tensorflow-cpu", "tensorflow"),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}
_SPARED_PASSES = 8
"""Passes of padding after which a network for batches of any size pays."""
_Pass = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def installed_engines() -> tuple[Engine, ...]:
    """The engines that are installed; TensorFlow always is."""
    return tuple(engine for engine in ENGINES if engine == "tensorflow" or find_spec(engine) is not None)


def require_engine(engine: Engine) -> None:
    """Checks that an engine is installed.

    Raises:
        UsageError: It is not.
    """
    if engine not in installed_engines():
        raise UsageError(
            f'`backbone.engine`: {NAMES[engine]} is not installed. Install Firn with the extra `engines`, or set "tensorflow".'
        )


def can_export() -> bool:
    """Whether Keras networks can be written as ONNX files here, which the extra `engines` brings."""
    return find_spec("tf2onnx") is not None and find_spec("onnx") is not None


def version_of(engine: Engine) -> str:
    """The version of an installed engine."""
    for name in _DISTRIBUTIONS[engine]:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def precisions_of(engine: Engine) -> tuple[Precision, ...]:
    """The precisions in which an engine multiplies on this processor, the reference first; int8 needs a file of its own."""
    if engine == "tensorflow":
        return ("float32", "bfloat16") if has_bfloat16() else ("float32",)
    if engine == "openvino":
        import openvino

        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("float32", "bfloat16") if "BF16" in capabilities else ("float32",)
    return ("float32",)


def can_compute(engine: Engine, precision: Precision) -> bool:
    """Whether an engine multiplies in a precision on this processor. In int8 OpenVINO and ONNX Runtime do on each."""
    return engine != "tensorflow" if precision == "int8" else precision in precisions_of(engine)


def import_engine(engine: Engine) -> None:
    """Imports the library of an engine, so that the first network loads sooner."""
    if engine == "tensorflow":
        import keras  # noqa: F401
    elif engine == "openvino":
        import openvino  # noqa: F401
    else:
        import onnxruntime  # noqa: F401


def load_onnx(
    path: str | Path,
    engine: Engine,
    *,
    precision: Precision = "float32",
    threads: int | None = None,
    batch_size: int | None = None,
    per_core: int | None = None,
) -> Forward:
    """Loads an ONNX network with one input for images, ``uint8 (n, height, width, 3)``, into OpenVINO or ONNX Runtime.

    Args:
        path: a local file.
        engine: "openvino" or "onnxruntime".
        precision: "bfloat16" for OpenVINO only: it keeps float32 where the processor has no such instructions.
            "int8" is a property of the file.
        threads: cores for one pass; None: all that this process may use.
        batch_size: the usual number of images, for which OpenVINO compiles the network with fixed shapes.
        per_core: images in a pass that a core computes alone, see `pieces`; None: all cores compute one pass together.

    Returns:
        A function from images to the network's output, ``float32 (n, feature_dim)``; call it from one thread at a time, or with
        `per_core` from any number.

    Raises:
        JobError: the engine cannot load the file.
        UsageError: the engine is not installed.
    """
    require_engine(engine)
    load = _load_openvino if engine == "openvino" else _load_onnxruntime
    try:
        return load(Path(path), precision, threads, batch_size, per_core)
    except (RuntimeError, ValueError) as error:  # the bases of both libraries' own errors
        raise JobError(f"{NAMES[engine]} cannot load {Path(path).name}: {first_line(error)}") from error


def _load_onnxruntime(
    path: Path, precision: Precision, threads: int | None, batch_size: int | None, per_core: int | None
) -> Forward:
    import onnxruntime

    at_once = passes_at_once(threads or _cores()) if per_core else 1
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would print, it raises as well
    options.intra_op_num_threads = (threads or _cores()) // at_once if per_core else threads or 0
    options.inter_op_num_threads = 1
    # Threads that wait by spinning take the cores from the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(  # without its second try, which prints
            path, options, providers=_providers(onnxruntime), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's own errors share no other base
        raise ValueError(first_line(error)) from error
    name = session.get_inputs()[0].name

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(session.run(None, {name: images})[0])

    if not per_core:
        return run
    run(np.zeros((1, *session.get_inputs()[0].shape[1:]), np.uint8))  # a first call alone, as for OpenVINO
    return in_pieces([run] * at_once, per_core)


def _providers(onnxruntime: Any) -> list[str]:
    """The GPU's provider where the installed ONNX Runtime has one, and the processor's."""
    usable = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in usable]


def _load_openvino(
    path: Path, precision: Precision, threads: int | None, batch_size: int | None, per_core: int | None
) -> Forward:
    import openvino

    core = openvino.Core()
    at_once = passes_at_once(threads or _cores()) if per_core else 1
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "NUM_STREAMS": at_once,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads

    def compile_for(images: int | None) -> list[Any]:
        model = core.read_model(path)
        if images is not None:
            shape = model.inputs[0].get_partial_shape()
            model.reshape({0: openvino.PartialShape([images, *list(shape)[1:]])})
        compiled = core.compile_model(model, "CPU", options)
        return [compiled.create_infer_request() for _ in range(at_once)]

    if per_core:
        return in_pieces([_own_pass(request) for request in compile_for(per_core)], per_core)
    if batch_size is None:
        return _pass_of(compile_for(None)[0])
    return _usual_or_any(_pass_of(compile_for(batch_size)[0]), batch_size, lambda: _pass_of(compile_for(None)[0]))


def _pass_of(request: Any) -> _Pass:
    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        request.infer({0: np.ascontiguousarray(images)}, share_inputs=True)
        return np.array(request.get_output_tensor(0).data)

    return infer


def _own_pass(request: Any) -> _Pass:
    """A pass over up to as many images as the network was compiled for, which may go on beside others.

    Its input is made, and a first pass computed, here: where OpenVINO did so in two threads at once, both could wait for ever.
    """
    import openvino

    images = np.zeros(tuple(request.get_input_tensor(0).shape), np.uint8)
    request.set_input_tensor(0, openvino.Tensor(images, shared_memory=True))
    request.infer()
    output = request.get_output_tensor(0)

    def run(piece: NDArray[np.uint8]) -> NDArray[np.float32]:
        images[: len(piece)] = piece
        request.infer(share_outputs=True)
        return np.array(output.data[: len(piece)])

    return run


def _padded(infer: _Pass, size: int) -> _Pass:
    """A pass over up to `size` images by one that takes exactly `size`."""

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(images) == size:
            return infer(images)
        padded = np.zeros((size, *images.shape[1:]), images.dtype)
        padded[: len(images)] = images
        return infer(padded)[: len(images)]

    return run


def _usual_or_any(usual: _Pass, size: int, make_any: Callable[[], _Pass]) -> _Pass:
    """A pass over any number of images by one that takes exactly `size`, and one that takes any number, made when it pays.

    Making it takes as long as some passes, and as much memory as the first. A short batch at the end of a shard is rather padded.
    """
    padded, others = _padded(usual, size), list[_Pass]()
    spared = 0

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal spared
        spared += size - len(images)
        if len(images) == size or (len(images) < size and not others and spared <= _SPARED_PASSES * size):
            return padded(images)
        if not others:
            others.append(make_any())
        return others[0](images)

    return run


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
