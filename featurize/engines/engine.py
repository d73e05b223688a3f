"""Which programs can compute a network here, and how one is loaded from an ONNX file."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

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
) -> Forward:
    """Loads an ONNX network with one input for images, ``uint8 (n, height, width, 3)``, into OpenVINO or ONNX Runtime.

    Args:
        path: a local file.
        engine: "openvino" or "onnxruntime".
        precision: "bfloat16" for OpenVINO only: it keeps float32 where the processor has no such instructions.
            "int8" is a property of the file.
        threads: cores for one pass; None: all that this process may use.
        batch_size: the usual number of images, for which OpenVINO compiles the network with fixed shapes.

    Returns:
        A function from images to the network's output, ``float32 (n, feature_dim)``; call it from one thread at a time.

    Raises:
        JobError: the engine cannot load the file.
        UsageError: the engine is not installed.
    """
    require_engine(engine)
    load = _load_openvino if engine == "openvino" else _load_onnxruntime
    try:
        return load(Path(path), precision, threads, batch_size)
    except (RuntimeError, ValueError) as error:  # the bases of both libraries' own errors
        raise JobError(f"{NAMES[engine]} cannot load {Path(path).name}: {first_line(error)}") from error


def _load_onnxruntime(path: Path, precision: Precision, threads: int | None, batch_size: int | None) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would print, it raises as well
    options.intra_op_num_threads = threads or 0
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

    return run


def _providers(onnxruntime: Any) -> list[str]:
    """The GPU's provider where the installed ONNX Runtime has one, and the processor's."""
    usable = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in usable]


def _load_openvino(path: Path, precision: Precision, threads: int | None, batch_size: int | None) -> Forward:
    import openvino

    core = openvino.Core()
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads

    def compile_for(images: int | None) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        model = core.read_model(path)
        if images is not None:
            shape = model.inputs[0].get_partial_shape()
            model.reshape({0: openvino.PartialShape([images, *list(shape)[1:]])})
        request = core.compile_model(model, "CPU", options).create_infer_request()

        def infer(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            request.infer({0: np.ascontiguousarray(batch)}, share_inputs=True)
            return np.array(request.get_output_tensor(0).data)

        return infer

    compiled = {batch_size: compile_for(batch_size)}  # by number of images; None: any

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = batch_size if len(images) == batch_size else None
        if size not in compiled:
            compiled[size] = compile_for(size)
        return compiled[size](images)

    return run
