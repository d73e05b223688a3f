"""A Keras network as a backbone: a .keras file for TensorFlow, or an ONNX file, exported once and kept, for the other engines."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from featurize import __version__, storage
from featurize.backbones import kept, keras_network
from featurize.backbones.hub_network import files_of_hub
from featurize.backbones.preparation import decoding_fields, preparation_of
from featurize.backbones.spec import BackboneSpec, Preprocessing
from featurize.backbones.weights import WeightsReport
from featurize.digests import settings_digest, sha256_file
from featurize.engines.engine import Engine, can_export, installed_engines, load_onnx
from featurize.engines.precision import Forward, Precision
from featurize.engines.tensorflow_log import without_notes
from featurize.errors import UsageError
from featurize.progress import stage
from featurize.recipes.backbone_section import DECODING, BackboneSettings

if TYPE_CHECKING:
    import keras

_REPORT = TypeAdapter(WeightsReport)
_FORMAT = 2  # of what is kept: another number, and it is made anew
_DESCRIBED = "specs"
_NOT_THE_NETWORK = {"engine", "precision", "batch_size", "layers", "column", "quantized", *DECODING}
_MAKERS = ("keras", "tensorflow-cpu", "tensorflow", "tf2onnx", "onnx")


class KerasBackbone:
    """A network of Keras. Where its ONNX file was kept by an earlier run, TensorFlow is not even imported.

    Attributes:
        spec: its description, computed by TensorFlow in float32.
        report: where its weights come from.

    Args:
        settings: what to open.
        folder: a local folder for its files.

    Raises:
        UsageError: The network or layer is unknown, or the weights do not fit or have another digest.
        JobError: ImageNet weights are not available.
    """

    def __init__(self, settings: BackboneSettings, folder: str | Path) -> None:
        self._settings, self._folder = settings, Path(folder)
        self._key: str | None = None
        self._exported: Path | None = None
        if can_export() and settings.engine != "tensorflow":
            self._key = _key_of(settings)
            found = kept.find_network(self._key, _parse_about) if self._key is not None else None
            if found is not None:
                self._exported, (spec, self.report) = found
                self.spec = _decoded_as(settings, spec)
                return
        self.spec, self.report = self._built[1:]

    def engines(self) -> tuple[Engine, ...]:
        """What can compute it here."""
        if self._settings.is_folder:  # workers, who have no keras-hub, take the exported file
            return tuple(engine for engine in installed_engines() if engine != "tensorflow")
        return installed_engines() if can_export() else ("tensorflow",)

    def why_not(self, engine: Engine) -> str:
        """Why an engine cannot compute it."""
        if self._settings.is_folder:
            return (
                "OpenVINO and ONNX Runtime compute what is in a folder: set `engine` to auto, openvino or onnxruntime."
            )
        return "Keras networks are exported with tf2onnx: install Firn with the extra `engines`."

    def file(self, engine: Engine) -> Path:
        """A new local file of the cut network for an engine; the caller may rename it."""
        if engine == "tensorflow":
            path = self._folder / "backbone.keras"
            self._built[0].save(path)
            return path
        if self._exported is None:
            self._exported = self._export()
        path = self._folder / "backbone.onnx"
        _link(self._exported, path)
        return path

    def describe(self, layer: str | None) -> BackboneSpec:
        """The description of the same network cut at another layer; kept, so that the next run need not build the network.

        Raises:
            UsageError: the layer is unknown.
        """
        settings = self._settings.model_copy(update={"layer": layer})
        key = _key_of(settings) if self._key is not None else None
        found = kept.find_document(_DESCRIBED, key, BackboneSpec.from_dict) if key is not None else None
        if found is not None:
            return _decoded_as(settings, found)
        spec = self._cut_at(settings)[1]
        if key is not None and self.report.notice is None:
            kept.keep_document(_DESCRIBED, key, spec.as_dict())
        return spec

    def forward(self, engine: Engine, precision: Precision) -> Forward:
        """The forward pass in this process."""
        if engine == "tensorflow":
            return keras_network.make_forward(self._built[0], replace(self.spec, precision=precision))
        with tempfile.TemporaryDirectory(prefix="firn-", dir=self._folder) as folder:
            path = Path(folder) / "backbone.onnx"
            shutil.move(self.file(engine), path)
            return load_onnx(path, engine, precision=precision)

    @cached_property
    def _built(self) -> "tuple[keras.Model, BackboneSpec, WeightsReport]":
        """The cut network in TensorFlow, and its description."""
        return *self._cut_at(self._settings), self._whole[2]

    @cached_property
    def _whole(self) -> "tuple[keras.Model, Preprocessing, WeightsReport]":
        return keras_network.build_network(self._settings)

    def _cut_at(self, settings: BackboneSettings) -> "tuple[keras.Model, BackboneSpec]":
        network, preprocessing, report = self._whole
        cut = keras_network.cut_network(network, settings)
        height, width = keras_network.input_size(cut, settings)
        prepared = preparation_of(settings, settings.name.rstrip("/")) if preprocessing == "stated" else None
        if prepared is not None and prepared.size not in ((None, None), (height, width)):
            raise UsageError(
                f"`backbone.name`: {settings.name} has an input of {height} x {width}, but its configuration prepares images of "
                f"{prepared.height} x {prepared.width}."
            )
        stated: Mapping[str, Any] = {} if prepared is None else asdict(prepared.normalization)
        spec = BackboneSpec(
            name=Path(settings.name).name if settings.is_keras_file or settings.is_folder else settings.name,
            network_sha256=report.file_sha256 if settings.is_keras_file or settings.is_folder else None,
            layer=keras_network.name_of_layer(cut, settings),
            weights=report.description,
            weights_digest=keras_network.digest_of_weights(cut),
            preprocessing=preprocessing,
            height=height,
            width=width,
            channels=3,
            precision="float32",
            feature_shape=tuple(cut.compute_output_shape((1, height, width, 3))[1:]),
            feature_dtype="float32",
            **stated,
            **_decoding(settings, height=height, width=width),
        )
        return cut, spec

    def _export(self) -> Path:
        """Writes the ONNX file, and keeps it for later runs."""
        from featurize.engines.keras_export import export_keras

        stage(f"exporting {self.spec.name}, once")
        cut, spec, _ = self._built
        path = self._folder / f"exported-{spec.preparation_id[:16]}.onnx"
        with without_notes():
            export_keras(
                cut,
                lambda images, apply: keras_network.features_of(images, apply, spec),
                path,
                height=spec.height,
                width=spec.width,
            )
        if self._key is not None and self.report.notice is None:  # random weights in place of others are not kept
            kept.keep_network(self._key, path, {"spec": spec.as_dict(), "report": asdict(self.report)})
        return path


def _parse_about(about: Mapping[str, Any]) -> tuple[BackboneSpec, WeightsReport]:
    return BackboneSpec.from_dict(about["spec"]), _REPORT.validate_python(about["report"])


def _decoding(settings: BackboneSettings, *, height: int, width: int) -> dict[str, Any]:
    """What the description says of decoding, which has no part in the network, and so in what is kept."""
    if settings.is_folder:
        trained = preparation_of(settings, settings.name.rstrip("/")).fit
    else:
        trained = keras_network.trained_fit(settings, height=height, width=width)
    return decoding_fields(settings, trained, height=height, width=width)


def _decoded_as(settings: BackboneSettings, spec: BackboneSpec) -> BackboneSpec:
    return replace(spec, **_decoding(settings, height=spec.height, width=spec.width))


def _key_of(settings: BackboneSettings) -> str | None:
    """Digest of all that determines the exported network, its files by their content; None if a file cannot be read."""
    files = {}
    of_hub = files_of_hub(settings.name.rstrip("/")) if settings.is_folder else []
    for name in (settings.name, settings.weights, *of_hub):
        if name is not None and (name.endswith((".keras", ".h5")) or name in of_hub):
            digest = _digest_of(name)
            if digest is None:
                return None
            files[name] = digest
    return settings_digest(
        {
            "format": _FORMAT,
            "settings": settings.model_dump(exclude=_NOT_THE_NETWORK),
            "files": files,
            "versions": {"firn": __version__, **{name: _version(name) for name in _MAKERS}},
        }
    )


def _digest_of(url: str) -> str | None:
    if not storage.exists(url):
        return None
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        local = Path(folder) / "file"
        storage.download(url, local)
        return sha256_file(local)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)
