"""An ONNX network as a backbone: from a file, or from a folder of the kind that Hugging Face hands out."""

import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from featurize import storage
from featurize.backbones import preparation
from featurize.backbones.hub_network import files_of_hub
from featurize.backbones.preparation import asked_size, check_size, decoding_fields
from featurize.backbones.spec import BackboneSpec
from featurize.backbones.weights import WeightsReport
from featurize.engines.engine import Engine, installed_engines, load_onnx
from featurize.engines.onnx_file import digests_of, read_onnx
from featurize.engines.onnx_graph import ImageInput, cut_at, find_image_input, take_images
from featurize.engines.onnx_layers import list_onnx_layers
from featurize.engines.parts import NetworkLayer, parse_layer
from featurize.engines.precision import Forward, Precision
from featurize.errors import UsageError
from featurize.recipes.backbone_section import SAVED_MODEL, BackboneSettings, not_read

_USUAL_PLACES = ("model.onnx", "onnx/model.onnx")


class OnnxBackbone:
    """A network in an ONNX file.

    Attributes:
        spec: its description, computed in float32.
        report: where its weights come from.

    Args:
        settings: what to open.
        folder: a local folder for its files.

    Raises:
        UsageError: There is no such file or layer, or it has another digest, or it cannot be used.
    """

    def __init__(self, settings: BackboneSettings, folder: str | Path) -> None:
        _require_runtime(settings)
        self._settings, self._folder = settings, Path(folder)
        name = settings.name.rstrip("/")
        url = _url_of(settings)
        prepared = preparation.preparation_of(settings, name)
        with tempfile.TemporaryDirectory(prefix="firn-") as temporary:
            model = read_onnx(url, temporary)
            digest, weights_digest = digests_of(temporary)
            if settings.weights_sha256 not in (None, digest):
                raise UsageError(f"`backbone.weights_sha256`: {url} has SHA-256 {digest}.")
        parts = parse_layer(settings.layer)
        tensors = cut_at(model, parts, origin=url)
        given = find_image_input(model, origin=url)
        height, width = (
            _length(settings, key, own, stated)
            for key, own, stated in zip(("height", "width"), (given.height, given.width), prepared.size, strict=True)
        )
        take_images(
            model,
            parts,
            tensors,
            given,
            height=height,
            width=width,
            normalization=prepared.normalization,
            patch_size=prepared.patch_size,
            origin=url,
        )
        self._content = model.SerializeToString()
        self.report = WeightsReport(f"{Path(url).name}, SHA-256 {digest}", file_sha256=digest)
        self.spec = BackboneSpec(
            name=Path(name).name,
            network_sha256=digest,
            layer=settings.layer or tensors[0],
            weights=self.report.description,
            weights_digest=weights_digest,
            preprocessing="stated",
            height=height,
            width=width,
            channels=3,
            precision="float32",
            feature_shape=(0,),
            feature_dtype="float32",
            **asdict(prepared.normalization),
            **decoding_fields(settings, prepared.fit, height=height, width=width),
        )
        self.spec = _with_shape(self.spec, self.forward("onnxruntime", "float32"))

    def engines(self) -> tuple[Engine, ...]:
        """What can compute it here."""
        return tuple(engine for engine in installed_engines() if engine != "tensorflow")

    def why_not(self, engine: Engine) -> str:
        """Why an engine cannot compute it."""
        return "It is an ONNX network: OpenVINO or ONNX Runtime computes it."

    def file(self, engine: Engine) -> Path:
        """A new local file of the cut network; the caller may rename it."""
        path = self._folder / "backbone.onnx"
        path.write_bytes(self._content)
        return path

    def describe(self, layer: str | None) -> BackboneSpec:
        """The description of the same network cut at another layer.

        Raises:
            UsageError: the layer is unknown.
        """
        return OnnxBackbone(self._settings.model_copy(update={"layer": layer}), self._folder).spec

    def forward(self, engine: Engine, precision: Precision) -> Forward:
        """The forward pass in this process."""
        handle, name = tempfile.mkstemp(suffix=".onnx", dir=self._folder)
        os.close(handle)
        path = Path(name)
        try:
            path.write_bytes(self._content)
            return load_onnx(path, engine, precision=precision)
        finally:
            path.unlink()


def _with_shape(spec: BackboneSpec, forward: Forward) -> BackboneSpec:
    features = forward(np.zeros((1, spec.height, spec.width, 3), np.uint8))
    return replace(spec, feature_shape=features.shape[1:])


def is_onnx_network(settings: BackboneSettings) -> bool:
    """Whether the network is in an ONNX file, by itself or in a folder; a folder without any network counts too."""
    name = settings.name.rstrip("/")
    return settings.is_onnx_file or (settings.is_folder and (_has_onnx_file(name) or not files_of_hub(name)))


def list_layers(settings: BackboneSettings) -> tuple[tuple[NetworkLayer, ...], tuple[int, int]]:
    """The tensors of the network that can be cut, in the order of its graph, and the height and width they are listed for.

    Raises:
        UsageError: There is no such file, or it cannot be used.
    """
    _require_runtime(settings)
    url = _url_of(settings)

    def size(given: ImageInput) -> tuple[int, int]:
        is_open = settings.is_folder and None in (given.height or settings.height, given.width or settings.width)
        stated = preparation.read_preparation(settings.name.rstrip("/")).size if is_open else (None, None)
        height, width = (
            _length(settings, key, own, other)
            for key, own, other in zip(("height", "width"), (given.height, given.width), stated, strict=True)
        )
        return height, width

    with tempfile.TemporaryDirectory(prefix="firn-") as temporary:
        return list_onnx_layers(read_onnx(url, temporary), size, origin=url)


def _require_runtime(settings: BackboneSettings) -> None:
    if "onnxruntime" not in installed_engines():
        raise UsageError(f"`backbone.name`: {settings.name} needs the extra `engines` of Firn, which is not installed.")


def _url_of(settings: BackboneSettings) -> str:
    name = settings.name.rstrip("/")
    return _network_of_folder(name) if settings.is_folder else name


def _has_onnx_file(url: str) -> bool:
    return any(file.endswith(".onnx") for file in storage.list_source(url))


def _network_of_folder(url: str) -> str:
    """The one ONNX file of a folder."""
    if not storage.is_folder(url):
        raise UsageError(f"`backbone.name`: there is no folder {url}, and files end in .keras or .onnx.")
    for place in _USUAL_PLACES:
        if storage.exists(storage.source_url(url, place)):
            return storage.source_url(url, place)
    found = sorted(file for file in storage.list_source(url) if file.endswith(".onnx"))
    if storage.exists(storage.source_url(url, SAVED_MODEL)):
        raise UsageError(f"`backbone.name`: {not_read(f'{url}/{SAVED_MODEL}')}.")
    if len(found) == 1:
        return found[0] if "/" in found[0] else storage.source_url(url, found[0])
    if found:
        raise UsageError(
            f"`backbone.name`: {url} has {len(found)} ONNX files, none of them model.onnx. Name one of them."
        )
    raise UsageError(
        f"`backbone.name`: {url} has no ONNX file, and no weights in safetensors with a {preparation.CONFIG}. Export it, for "
        "instance with Optimum, to model.onnx in this folder."
    )


def _length(settings: BackboneSettings, key: str, own: int | None, stated: int | None) -> int:
    """Height or width of the input: the network's, the recipe's, or the folder's."""
    check_size(settings, key, own)
    found = own or asked_size(settings, key) or stated
    if found is None:
        raise UsageError(f"`backbone.{key}` is required: {settings.name} takes images of any size.")
    if stated is not None and asked_size(settings, key) is None and found != stated:
        raise UsageError(
            f"`backbone.name`: {settings.name} has an input of {key} {found}, but its configuration prepares images of {stated}."
        )
    return found
