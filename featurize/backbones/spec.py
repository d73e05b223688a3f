"""What a backbone is, for manifests, models and workers, and a backbone that is ready to be sent to them."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from featurize.backbones.weights import WeightsReport
from featurize.decoding.decode import Color, DecodingOptions, Fit, Interpolation, Way
from featurize.digests import settings_digest
from featurize.engines.engine import Engine
from featurize.engines.measurement import Measurement
from featurize.engines.onnx_graph import Normalization
from featurize.engines.precision import Precision
from featurize.errors import JobError, first_line

Preprocessing = Literal["none", "caffe", "tf", "torch", "stated"]


@dataclass(frozen=True)
class BackboneSpec:
    """Everything that determines the features of an image; stored in the manifest. A worker needs only this and the file.

    `weights_digest` covers the values of the weights before the cut, so it does not depend on the file that they came in.
    `network_sha256` is the digest of the .keras or .onnx file where the network came in one, as nothing else identifies its
    layers. `scale`, `mean`, `std` and `channel_order` are those of `Normalization` where `preprocessing` is "stated"; `resize`,
    `interpolation`, `offset`, `antialias` and `draft` those of `Fit`; `color` and `white` those of `decode_image`.
    `quantized_sha256` is the digest of the file that computes in int8, as its scales come from images. What has its default
    value is left out of documents, as in those of version 0.2, which stretched pictures and ignored colour profiles.
    """

    name: str
    network_sha256: str | None
    layer: str | None
    weights: str | None
    weights_digest: str | None
    preprocessing: Preprocessing
    resizing: str
    height: int
    width: int
    channels: int
    precision: Precision
    feature_shape: tuple[int, ...]
    feature_dtype: Literal["float32", "uint8"]
    engine: Engine = "tensorflow"
    resize: int | tuple[int, int] | Way | None = None
    interpolation: Interpolation = "bilinear"
    offset: Literal["floor", "round"] = "floor"
    antialias: bool = True
    draft: bool = False
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    quantized_sha256: str | None = None
    color: Color = "raw"
    white: float | None = None

    @property
    def is_pixels(self) -> bool:
        """Whether the features are the pixels themselves."""
        return self.name == "pixels"

    @property
    def fit(self) -> Fit | None:
        """How pictures are resized, cropped or padded; None: stretched."""
        if self.resize is None:
            return None
        return Fit(self.resize, self.interpolation, self.offset, self.antialias, self.draft)

    @property
    def decoding(self) -> DecodingOptions:
        """How an image becomes pixels: the keyword arguments of `decode_image`, and of a `Decoder`."""
        return {
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "fit": self.fit,
            "color": self.color,
            "white": self.white,
        }

    @property
    def normalization(self) -> Normalization | None:
        """The stated preparation of values; None where `preprocessing` names it."""
        if self.preprocessing != "stated":
            return None
        return Normalization(self.scale, self.mean, self.std, self.channel_order)

    def as_dict(self) -> dict[str, Any]:
        """The description as a JSON-ready dict, for the manifest."""
        defaults = {entry.name: entry.default for entry in fields(self) if entry.default is not MISSING}
        document = {key: value for key, value in asdict(self).items() if key not in defaults or value != defaults[key]}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The backbone described in a manifest or a saved model; unknown keys are ignored.

        Raises:
            KeyError: A part is missing.
            ValueError: A part has another type.
        """
        known: dict[str, Any] = {}
        for entry in fields(cls):
            if entry.name in document:
                value = document[entry.name]
                known[entry.name] = tuple(value) if isinstance(value, list) else value
            elif entry.default is MISSING:
                raise KeyError(entry.name)
        _adapter().validate_python(known)  # the values are kept as they are: their digest must not change
        return cls(**known)

    @classmethod
    def read(cls, document: Mapping[str, Any], *, origin: str) -> Self:
        """The backbone described in a document of someone else, like `from_dict`.

        Args:
            document: the description.
            origin: the document that it is in.

        Raises:
            JobError: It is damaged.
        """
        try:
            return cls.from_dict(document)
        except (KeyError, ValueError) as error:
            raise JobError(f"{origin} is damaged: the description of the backbone: {first_line(error)}") from error

    @property
    def preparation_id(self) -> str:
        """Digest of all that determines the features of an image; the origin of the weights and the engine do not."""
        return settings_digest(self.determining)

    @property
    def determining(self) -> dict[str, Any]:
        """The parts of the description that determine the features of an image."""
        return {key: value for key, value in self.as_dict().items() if key not in ("name", "weights", "engine")}


@cache
def _adapter() -> TypeAdapter[BackboneSpec]:
    return TypeAdapter(BackboneSpec)


@dataclass(frozen=True)
class PreparedBackbone:
    """A backbone on the driver: the cut network as a .keras or .onnx file (None for `pixels`) with its digest.

    Attributes:
        spec: what it is.
        path: the local file.
        sha256: its digest.
        report: where the weights come from.
        batch_size: the number of images that are computed together, which the recipe asks for, or that was fastest.
        bfloat16_cosine: mean cosine between features in bfloat16 and float32, if bfloat16 was compared.
        measured: the engines that were compared, the chosen one first.
        per_core: images in a pass that one core computes alone; None: all cores compute one pass together.
        quantization: how the network in int8 was made and judged, for the manifest; None in other precisions.
    """

    spec: BackboneSpec
    path: Path | None = None
    sha256: str | None = None
    report: WeightsReport | None = None
    batch_size: int = 32
    bfloat16_cosine: float | None = None
    measured: tuple[Measurement, ...] = field(default=(), compare=False)
    per_core: int | None = None
    quantization: dict[str, Any] | None = field(default=None, compare=False)
