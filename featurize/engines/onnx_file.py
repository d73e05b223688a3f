"""ONNX files that others made: read with their external data, and refused in one sentence where they cannot be used."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.errors import UsageError, first_line

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 9  # of tf2onnx and torch exports of 2019; older ones have other rules for shapes
_MAX_BYTES = (1 << 31) - 1  # what one Protocol Buffers message may hold


def read_onnx(url: str, folder: str | Path) -> "onnx.ModelProto":
    """Reads an ONNX file, with the files beside it that hold its weights, if it has any.

    Args:
        url: the file's URL.
        folder: a local folder for copies.

    Raises:
        UsageError: the file, or one that it needs, is missing or damaged, or it is newer or older than what can be read.
    """
    if not storage.exists(url):
        raise UsageError(f"`backbone.name`: there is no file {url}.")
    try:
        import onnx
    except ImportError as error:
        raise UsageError(
            "`backbone.name`: ONNX files need the extra `engines` of Firn, which is not installed."
        ) from error
    local = Path(folder) / "network.onnx"
    storage.download(url, local)
    try:
        model = onnx.load(str(local), load_external_data=False)
    except Exception as error:  # of Protocol Buffers, which names its errors by its version
        raise UsageError(f"`backbone.name`: {url} is not an ONNX file, or it is damaged.") from error
    if not model.graph.output:
        raise UsageError(f"`backbone.name`: {url} is not an ONNX file, or it is damaged.")
    _check_opset(model, url)
    beside = sorted({_location(tensor) for tensor in _external_tensors(model)})
    for name in beside:
        _download_beside(url, name, Path(folder))
    if beside:
        try:
            onnx.load_external_data_for_model(model, str(folder))
        except Exception as error:  # damaged in one of many ways
            raise UsageError(
                f"`backbone.name`: the external data of {url} cannot be read: {first_line(error)}"
            ) from error
    if model.ByteSize() > _MAX_BYTES:
        raise UsageError(f"`backbone.name`: {url} holds more than 2 GB of weights, which is not supported.")
    return model


def _check_opset(model: "onnx.ModelProto", url: str) -> None:
    import onnx

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    newest = onnx.defs.onnx_opset_version()
    if opset is None:
        raise UsageError(f"`backbone.name`: {url} does not say of which ONNX opset it is.")
    if not OLDEST_OPSET <= opset <= newest:
        raise UsageError(
            f"`backbone.name`: {url} is of ONNX opset {opset}; {OLDEST_OPSET} to {newest} can be read. Export it again."
        )


def _external_tensors(model: "onnx.ModelProto") -> list[Any]:
    import onnx

    tensors = [*model.graph.initializer]
    for node in model.graph.node:
        tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    return [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]


def _location(tensor: Any) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _download_beside(url: str, name: str, folder: Path) -> None:
    """Fetches a file beside `url`. Its name comes from the file, so it may not lead anywhere else."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise UsageError(f"`backbone.name`: {url} asks for external data outside its own folder: {name!r}.")
    source = storage.join_url(url.rpartition("/")[0] or ".", name)
    if not storage.exists(source):
        raise UsageError(f"`backbone.name`: {url} needs the file {name} beside it, which is missing.")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    storage.download(source, target)
