"""Frozen backbones: opened on the driver, written to one file for the engine that computes it, loaded from it by workers.

The driver builds the named network, gives it its weights and keeps the part before the cut: workers never see the rest, and never
download anything.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featurize import storage
from featurize.backbones import keras_network
from featurize.backbones.keras_backbone import KerasBackbone
from featurize.backbones.onnx_backbone import OnnxBackbone, is_onnx_network
from featurize.backbones.preparation import decoding_fields
from featurize.backbones.spec import BackboneSpec, PreparedBackbone
from featurize.digests import sha256_file
from featurize.engines.engine import Engine, can_compute, load_onnx, precisions_of, require_engine
from featurize.engines.measurement import Measurement
from featurize.engines.precision import Forward, Precision, choose_precision, has_bfloat16
from featurize.engines.quantization import read_origin
from featurize.errors import JobError, UsageError
from featurize.progress import stage
from featurize.recipes.backbone_section import BackboneSettings

DEFAULT_BATCH = 32
"""Images in a pass, where nothing was measured."""


class QuantizedBackbone:
    """A network whose products are in int8: an ONNX file that `engines.quantization` made from that of another backbone.

    Attributes:
        base: the backbone in float32.
        spec: its description.
        report: where its weights come from.

    Args:
        base: what it was made from.
        url: its file.
        folder: a local folder for its files.

    Raises:
        UsageError: the file is missing or damaged, or it was made from another network.
    """

    def __init__(self, base: KerasBackbone | OnnxBackbone, url: str, folder: str | Path) -> None:
        self.base, self.report, self._folder = base, base.report, Path(folder)
        if not self.engines():
            raise UsageError("`backbone.precision`: int8 needs the extra `engines` of Firn, which is not installed.")
        if not storage.exists(url):
            raise UsageError(f"`backbone.quantized`: there is no file {url}, the network of {base.spec.name} in int8.")
        self._file = self._folder / "quantized.onnx"
        storage.download(url, self._file)
        digest, said = sha256_file(self._file), Path(url).stem
        origin = read_origin(self._file)
        if origin is None or (len(said) == len(digest) and said != digest):
            raise UsageError(f"`backbone.quantized`: {url} is damaged, or it is no network that Firn made.")
        if origin != base.spec.preparation_id:
            raise UsageError(
                f"`backbone.quantized`: {url} was made from another network than {base.spec.name}, or from other weights."
            )
        self.spec = replace(base.spec, precision="int8", quantized_sha256=digest)

    def engines(self) -> tuple[Engine, ...]:
        """What can compute it here."""
        return tuple(engine for engine in self.base.engines() if engine != "tensorflow")

    def why_not(self, engine: Engine) -> str:
        """Why an engine cannot compute it."""
        return "OpenVINO and ONNX Runtime compute in int8."

    def file(self, engine: Engine) -> Path:
        """A new local file of the network; the caller may rename it."""
        return Path(shutil.copyfile(self._file, self._folder / "backbone.onnx"))

    def describe(self, layer: str | None) -> BackboneSpec:
        """The description of the network in float32 cut at another layer."""
        return self.base.describe(layer)

    def forward(self, engine: Engine, precision: Precision) -> Forward:
        """The forward pass in this process."""
        return load_onnx(self._file, engine, precision=precision)


OpenedBackbone = KerasBackbone | OnnxBackbone | QuantizedBackbone


@dataclass(frozen=True)
class Decision:
    """What computes a backbone, and how.

    Attributes:
        engine: the program.
        precision: of its products.
        batch_size: images that are computed together.
        bfloat16_cosine: mean cosine between features in bfloat16 and in float32, if bfloat16 was compared.
        measured: the engines that were compared, the chosen one first.
        per_core: images in a pass that one core computes alone; None: all cores compute one pass together.
    """

    engine: Engine
    precision: Precision
    batch_size: int = DEFAULT_BATCH
    bfloat16_cosine: float | None = None
    measured: tuple[Measurement, ...] = ()
    per_core: int | None = None


Decide = Callable[[OpenedBackbone, BackboneSettings], Decision]


def prepare_backbone(
    settings: BackboneSettings, folder: str | Path, *, decide: Decide | None = None
) -> PreparedBackbone:
    """Opens the backbone that `settings` describe and writes the part before the cut into `folder`.

    Args:
        settings: what to prepare.
        folder: a local folder.
        decide: chooses engine, precision and batch size; None: `decide_unmeasured`.

    Raises:
        UsageError: The network or layer is unknown, or the weights do not fit or have another digest.
        JobError: ImageNet weights are not available.
    """
    if settings.name == "pixels":
        return PreparedBackbone(_pixels_spec(settings), batch_size=settings.batch_size or DEFAULT_BATCH)
    return finish_backbone(open_backbone(settings, folder), settings, decide=decide)


def finish_backbone(
    opened: OpenedBackbone, settings: BackboneSettings, *, decide: Decide | None = None
) -> PreparedBackbone:
    """Decides what computes an opened backbone, and writes its file into its folder; the arguments are as above.

    Raises:
        UsageError: the engine cannot compute the network.
    """
    decision = (decide or decide_unmeasured)(opened, settings)
    path = opened.file(decision.engine)
    digest = sha256_file(path)
    path = path.rename(path.with_name(f"backbone-{digest[:16]}{path.suffix}"))  # Spark assumes one content for a name
    return PreparedBackbone(
        spec=replace(opened.spec, engine=decision.engine, precision=decision.precision),
        path=path,
        sha256=digest,
        report=opened.report,
        batch_size=decision.batch_size,
        per_core=decision.per_core,
        bfloat16_cosine=decision.bfloat16_cosine,
        measured=decision.measured,
    )


def open_backbone(settings: BackboneSettings, folder: str | Path) -> OpenedBackbone:
    """The backbone that `settings` describe, `pixels` apart, before it is known what computes it.

    Raises:
        UsageError: The network or layer is unknown, or the weights do not fit or have another digest.
        JobError: ImageNet weights are not available.
    """
    stage(f"cutting {Path(settings.name).name}" + (f" at {settings.layer}" if settings.layer else ""))
    if settings.engine != "auto":
        require_engine(settings.engine)
    opened = OnnxBackbone(settings, folder) if is_onnx_network(settings) else KerasBackbone(settings, folder)
    return opened if settings.quantized is None else QuantizedBackbone(opened, settings.quantized, folder)


def decide_unmeasured(opened: OpenedBackbone, settings: BackboneSettings) -> Decision:
    """The engine that the recipe names, or the first that can compute the network; bfloat16 where it keeps the features.

    Raises:
        UsageError: the engine cannot compute the network.
    """
    usable = opened.engines()
    engine = usable[0] if settings.engine == "auto" else settings.engine
    if engine not in usable:
        raise UsageError(f"`backbone.engine`: {engine} cannot compute {settings.name} here. {opened.why_not(engine)}")
    size = settings.batch_size or DEFAULT_BATCH
    if settings.precision != "auto":
        return Decision(engine, settings.precision, size)
    if len(precisions_of(engine)) == 1:
        return Decision(engine, "float32", size)
    stage(f"comparing bfloat16 with float32 for {opened.spec.name}")
    spec = opened.spec
    precision, cosine = choose_precision(
        lambda precision: opened.forward(engine, precision), height=spec.height, width=spec.width
    )
    return Decision(engine, precision, size, cosine)


def load_backbone(
    spec: BackboneSpec,
    path: str | Path | None,
    *,
    sha256: str | None,
    threads: int | None = None,
    batch_size: int | None = None,
    per_core: int | None = None,
) -> Forward:
    """Loads a prepared backbone: a function from ``uint8 (n_images, height, width, channels)`` to the features.

    The features are ``float32 (n_images, feature_dim)``, flattened in row-major order; for `pixels` the images themselves.

    Args:
        spec: what it is.
        path: its local file; None for `pixels`.
        sha256: the digest of the file.
        threads: cores for one pass in OpenVINO or ONNX Runtime (for TensorFlow, see `set_threads`); None: all.
        batch_size: the usual number of images in a pass; None: any.
        per_core: see `load_onnx`; not for TensorFlow.

    Raises:
        JobError: The file is not the prepared one, or this machine cannot compute in the required precision.
        UsageError: The engine is not installed.
    """
    if spec.is_pixels:
        return lambda images: images
    if path is None or sha256_file(path) != sha256:
        raise JobError(
            f"the backbone file {path} is not the one that this job prepared: its SHA-256 differs from {sha256}."
        )
    if spec.engine != "tensorflow":
        require_engine(spec.engine)
        if not can_compute(spec.engine, spec.precision):
            raise _no_bfloat16()
        how = {"threads": threads, "batch_size": batch_size, "per_core": per_core}
        return load_onnx(path, spec.engine, precision=spec.precision, **how)
    if spec.precision == "bfloat16" and not has_bfloat16():
        raise _no_bfloat16()
    return keras_network.load_forward(path, spec)


def warm_up(forward: Forward, spec: BackboneSpec) -> None:
    """Runs a loaded backbone once on one image of zeros, where only that compiles it."""
    if spec.engine == "tensorflow" and not spec.is_pixels:
        forward(np.zeros((1, spec.height, spec.width, spec.channels), np.uint8))


def _no_bfloat16() -> JobError:
    return JobError(
        'the backbone must run in bfloat16, which this machine does not support. Set `backbone.precision = "float32"`.'
    )


def _pixels_spec(settings: BackboneSettings) -> BackboneSpec:
    if settings.height is None or settings.width is None:
        raise UsageError("`backbone.height` and `backbone.width` are required with `pixels`.")
    shape = (settings.height, settings.width, settings.channels or 3)
    return BackboneSpec(
        name="pixels",
        network_sha256=None,
        layer=None,
        weights=None,
        weights_digest=None,
        preprocessing="none",
        height=shape[0],
        width=shape[1],
        channels=shape[2],
        precision="float32",
        feature_shape=shape,
        feature_dtype="uint8",
        **decoding_fields(settings, None, height=settings.height, width=settings.width),
    )
