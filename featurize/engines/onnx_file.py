"""ONNX files that others made: read with their external data, and refused in one sentence where they cannot be used."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.digests import settings_digest, sha256_file
from featurize.errors import UsageError, first_line

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 9  # of tf2onnx and torch exports of 2019; older ones have other rules for shapes
_MAX_BYTES = (1 << 31) - 1  # what one Protocol Buffers message may hold
_NETWORK, _BESIDE = "network.onnx", "beside"  # the copies: the file, and a folder for those beside it


def read_onnx(url: str, folder: str | Path) -> "onnx.ModelProto":
    """Reads an ONNX file, with the files beside it that hold its weights, if it has any.

    Args:
        url: the file's URL.
        folder: a local folder for copies.

    Raises:
        UsageError: the file, or one that it needs, is missing or damaged, or it is newer or older than what can be read.
    """
    if not _is_file(url):
        raise UsageError(f"`backbone.name`: there is no file {url}.")
    try:
        import onnx
    except ImportError as error:
        raise UsageError(
            "`backbone.name`: ONNX files need the extra `engines` of Firn, which is not installed."
        ) from error
    local = Path(folder) / _NETWORK
    storage.download(url, local)
    try:
        model = onnx.load(str(local), load_external_data=False)
    except Exception as error:  # of Protocol Buffers, which names its errors by its version
        raise UsageError(f"`backbone.name`: {url} is not an ONNX file, or it is damaged.") from error
    if not model.graph.output or not all(isinstance(name, str) for name in _names_of(model.graph)):
        raise UsageError(f"`backbone.name`: {url} is not an ONNX file, or it is damaged.")
    _check_opset(model, url)
    beside = sorted(
        {_location(tensor) for tensor in _tensors_of(model.graph) if tensor.data_location == tensor.EXTERNAL}
    )
    for name in beside:
        _download_beside(url, name, Path(folder) / _BESIDE)
    if beside:
        try:
            onnx.load_external_data_for_model(model, str(Path(folder) / _BESIDE))
        except Exception as error:  # damaged in one of many ways
            raise UsageError(
                f"`backbone.name`: the external data of {url} cannot be read: {first_line(error)}"
            ) from error
    if model.ByteSize() > _MAX_BYTES:
        raise UsageError(f"`backbone.name`: {url} holds more than 2 GB of weights, which is not supported.")
    return model


def digests_of(folder: str | Path) -> tuple[str, str | None]:
    """The SHA-256 of the file that `read_onnx` has copied into `folder`, and one of all files beside it; None without such files.

    Weights in files beside it can change while the file itself does not.
    """
    beside = Path(folder) / _BESIDE
    files = sorted(file for file in beside.rglob("*") if file.is_file())
    others = {file.relative_to(beside).as_posix(): sha256_file(file) for file in files}
    return sha256_file(Path(folder) / _NETWORK), settings_digest(others) if others else None


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


def _tensors_of(graph: Any) -> Iterator[Any]:
    """The tensors of a graph and of the branches and bodies in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors_of(inner)


def _names_of(graph: Any) -> Iterator[Any]:
    """The names in a graph: texts, or bytes where they are none."""
    for named in (*graph.input, *graph.output, *graph.initializer):
        yield named.name
    for node in graph.node:
        yield from (node.op_type, *node.input, *node.output)


def _location(tensor: Any) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _download_beside(url: str, name: str, folder: Path) -> None:
    """Fetches a file beside `url`. Its name comes from the file, so it may not lead anywhere else."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UsageError(f"`backbone.name`: {url} asks for external data outside its own folder: {name!r}.")
    source = storage.source_url(url.rpartition("/")[0] or ".", name)
    if not _is_file(source):
        raise UsageError(f"`backbone.name`: {url} needs the file {name} beside it, which is missing.")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    storage.download(source, target)


def _is_file(url: str) -> bool:
    """Neither a folder nor a link that leads nowhere."""
    return storage.find_file(url) is not None and storage.exists(url)
