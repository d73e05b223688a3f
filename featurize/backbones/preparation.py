"""How a network wants its images: read from the recipe, from a `preprocessor_config.json` or from timm's `config.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import floor, isfinite
from typing import Any

from featurize import storage
from featurize.decoding.decode import Fit, Interpolation
from featurize.decoding.fitting import PLAIN, describe_fit
from featurize.engines.onnx_graph import Normalization
from featurize.errors import UsageError
from featurize.recipes.backbone_section import BackboneSettings

NAMED: dict[str, Normalization] = {
    "none": Normalization(),
    "tf": Normalization(1 / 127.5, (1.0, 1.0, 1.0)),
    "torch": Normalization(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": Normalization(1.0, (103.939, 116.779, 123.68), channel_order="bgr"),
}
"""What `backbone.preprocessing` stands for. Source: keras.applications.imagenet_utils.preprocess_input."""
PREPROCESSOR, CONFIG = "preprocessor_config.json", "config.json"
_FILTERS: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}  # the numbers of PIL.Image.Resampling
_INT_IS_SHORTER_SIDE = ("clip", "bit", "convnext", "mobilenetv1", "mobilenetv2")
_INT_IS_BOTH_SIDES = ("vit", "deit", "beit", "siglip", "blip", "dinov3vit")
_SUFFIXES = ("fast", "imageprocessor", "featureextractor")  # of the names of Hugging Face's classes
_MOST_PIXELS = 4096  # of a side, as in the recipe
_CONVNEXT_WHOLE = 384  # pixels; from this size on ConvNeXt's processor does not crop


@dataclass(frozen=True)
class Preparation:
    """How pictures become the input of a network.

    Attributes:
        fit: how they are resized and cropped; None: it is not said.
        normalization: how values are scaled.
        height: of the input in pixels, where it is stated.
        width: of the input in pixels, where it is stated.
        patch_size: pixels of a patch's side in a transformer, where it is stated.
    """

    fit: Fit | None
    normalization: Normalization
    height: int | None = None
    width: int | None = None
    patch_size: int | None = None

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Height and width of the input."""
        return self.height, self.width


def asked_size(settings: BackboneSettings, key: str) -> int | None:
    """What the recipe says about the height or width of the network's input, by itself or as `crop`."""
    asked: int | None = getattr(settings, key)
    if settings.crop is None:
        return asked
    cropped = _both(settings.crop)[key == "width"]
    if asked not in (None, cropped):
        raise UsageError(f"`backbone.{key}` is {asked}, but `backbone.crop` gives {cropped}.")
    return cropped


def check_size(settings: BackboneSettings, key: str, own: int | None) -> None:
    """Checks that the recipe asks for the input that the network has, if it has one size only.

    Raises:
        UsageError: it asks for another.
    """
    asked = asked_size(settings, key)
    if own is not None and asked not in (None, own):
        name = "crop" if settings.crop is not None else key
        raise UsageError(f"`backbone.{name}` must be {own}, the input of {settings.name}. Got {asked}.")


def decoding_fields(settings: BackboneSettings, trained: Fit | None, *, height: int, width: int) -> dict[str, Any]:
    """What the description of a backbone says of decoding: fields of `BackboneSpec`.

    Args:
        settings: of the backbone.
        trained: how it was trained to see pictures; None: that is not known.
        height: of the input in pixels.
        width: of the input in pixels.

    Raises:
        UsageError: the recipe asks for what is not known or not possible.
    """
    chosen = _chosen_fit(settings, trained, height=height, width=width)
    _check_fit(chosen, height=height, width=width)
    fit = None if chosen == Fit((height, width), draft=True) else chosen
    return {
        "resizing": describe_fit(fit, height=height, width=width),
        "color": settings.color or "srgb",
        "white": settings.white,
        **asdict(fit or Fit("crop")),
        **({"resize": None} if fit is None else {}),
    }


def _chosen_fit(settings: BackboneSettings, trained: Fit | None, *, height: int, width: int) -> Fit:
    """How pictures become the input of a network: as the recipe says, or as the network was trained."""
    stretched = Fit((height, width), draft=True)
    match settings.resize:
        case None:
            fit = trained or stretched
        case "trained":
            if trained is None:
                raise UsageError(
                    f'`resize` cannot be "trained": how {settings.name} was trained to see pictures is not known. '
                    'Say "stretch", "crop" or "pad".'
                )
            fit = trained
        case "stretch":
            fit = stretched
        case "crop" | "pad" as way:
            fit = Fit(way, draft=True)
        case size:
            fit = Fit(size if isinstance(size, int) else _both(size))
    if settings.interpolation is not None:
        fit = replace(fit, interpolation=settings.interpolation)
    if settings.antialias is not None:
        fit = replace(fit, antialias=settings.antialias)
    if not fit.antialias and fit.interpolation not in PLAIN:
        raise UsageError(
            f"`antialias` cannot be false with the filter {fit.interpolation}: only with {', '.join(PLAIN)}."
        )
    return fit


def stated_normalization(settings: BackboneSettings) -> Normalization:
    """How the recipe wants values scaled."""
    default = Normalization()
    return Normalization(
        scale=default.scale if settings.scale is None else settings.scale,
        mean=_triple(settings.mean, default.mean),
        std=_triple(settings.std, default.std),
        channel_order=settings.channel_order or default.channel_order,
    )


def _check_fit(fit: Fit, *, height: int, width: int) -> None:
    """Checks that every resized picture covers the network's input."""
    if isinstance(fit.resize, str):
        return
    least = (fit.resize, fit.resize) if isinstance(fit.resize, int) else fit.resize
    if least[0] < height or least[1] < width:
        raise UsageError(
            f"`backbone.resize` must be at least the input of the network, {height} x {width}. Got {fit.resize}."
        )


def preparation_of(settings: BackboneSettings, url: str) -> Preparation:
    """What the recipe states; of the folder at `url`, its own, which the recipe may replace in part.

    Raises:
        UsageError: the folder states none, or one that is not known here.
    """
    own = read_preparation(url) if settings.is_folder else None
    if settings.preprocessing is not None:
        normalization = NAMED[settings.preprocessing]
    elif settings.states_normalization or own is None:
        normalization = stated_normalization(settings)
    else:
        normalization = own.normalization
    if own is None:
        return Preparation(None, normalization)
    if settings.states_size:
        return Preparation(None, normalization, patch_size=own.patch_size)
    return Preparation(own.fit, normalization, own.height, own.width, own.patch_size)


def read_preparation(url: str) -> Preparation:
    """The preparation that a folder states: its `preprocessor_config.json`, or else a timm `config.json`.

    Args:
        url: the folder's URL.

    Raises:
        UsageError: it states none, or one that is not known here.
    """
    config = _read(url, CONFIG)
    patch: Any = config.get("patch_size")
    found: Mapping[str, Any] | None = (
        _read(url, PREPROCESSOR) if storage.exists(storage.source_url(url, PREPROCESSOR)) else None
    )
    if found is not None:
        prepared = from_huggingface(found, origin=f"{url}/{PREPROCESSOR}")
    elif isinstance(config.get("pretrained_cfg"), Mapping):
        prepared = from_timm(config["pretrained_cfg"], origin=f"{url}/{CONFIG}")
    else:
        raise UsageError(
            f"`backbone.name`: {url} has no {PREPROCESSOR}, and its {CONFIG} is not timm's: how images are prepared is not said. "
            "Name its .onnx file, and say it in the recipe."
        )
    patch_size = int(patch) if _is_pixels(patch) else None
    return Preparation(prepared.fit, prepared.normalization, prepared.height, prepared.width, patch_size)


def from_huggingface(config: Mapping[str, Any], *, origin: str) -> Preparation:
    """The preparation of a Hugging Face image processor.

    Source: the fields and rules of `transformers`' image processors (CLIP, ViT, BiT as DINOv2 uses it, ConvNeXt, SigLIP and
    others that do the same). Those with rules of their own, such as LeViT and PoolFormer, are refused.

    Args:
        config: the content of its `preprocessor_config.json`.
        origin: its path, for messages.

    Raises:
        UsageError: a field that matters is missing or not known.
    """
    fit, size = _huggingface_fit(config, _huggingface_kind(config, origin), origin)
    scale = 1.0
    if config.get("do_rescale", True):
        scale = _number(config.get("rescale_factor", 1 / 255), "rescale_factor", origin)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean = _three(config.get("image_mean"), "image_mean", origin)
        std = _std(config.get("image_std"), "image_std", origin)
    return Preparation(fit, Normalization(scale, mean, std), *size)


def _huggingface_kind(config: Mapping[str, Any], origin: str) -> str:
    """Which processor it is, without the ends of its name; "" where that is not said."""
    key = "image_processor_type" if config.get("image_processor_type") else "feature_extractor_type"
    kind = str(config.get(key) or "").lower()
    for suffix in _SUFFIXES:
        kind = kind.removesuffix(suffix)
    if kind and kind not in (*_INT_IS_SHORTER_SIDE, *_INT_IS_BOTH_SIDES):
        raise UsageError(
            f"{origin}: what `{key}` {config[key]} does is not known here. Name the .onnx file, and say it in the recipe."
        )
    return kind


def _huggingface_fit(
    config: Mapping[str, Any], kind: str, origin: str
) -> tuple[Fit | None, tuple[int | None, int | None]]:
    resize: int | tuple[int, int] | None = None
    crops = bool(config.get("do_center_crop", False))
    if config.get("do_resize", True):
        resize = _huggingface_size(config.get("size"), "size", kind, origin)
    if kind == "convnext" and isinstance(resize, int):
        short = resize
        if short >= _CONVNEXT_WHOLE:
            return Fit((short, short), _filter(config, origin)), (short, short)
        fraction = _fraction(config.get("crop_pct"), "crop_pct", origin)
        return Fit(int(short / fraction), _filter(config, origin)), (short, short)
    if crops:
        cropped = _huggingface_size(config.get("crop_size"), "crop_size", "vit", origin)  # one number is a square
        if isinstance(cropped, int):
            raise UsageError(f"{origin}: `crop_size` must have `height` and `width`. Got {config['crop_size']!r}.")
        if resize is None:
            raise UsageError(f"{origin}: a crop without resizing (`do_resize` false) is not supported.")
        least = (resize, resize) if isinstance(resize, int) else resize
        if least[0] < cropped[0] or least[1] < cropped[1]:
            raise UsageError(
                f"{origin}: `crop_size` {cropped[0]} x {cropped[1]} is larger than `size`, which needs a border."
            )
        return Fit(resize, _filter(config, origin)), cropped
    if resize is None:
        raise UsageError(f"{origin}: images of different sizes (`do_resize` false) cannot be put into one batch.")
    if isinstance(resize, int):
        raise UsageError(f"{origin}: `size` names the shorter side, but nothing is cropped, so images differ in shape.")
    return Fit(resize, _filter(config, origin)), resize


def _huggingface_size(value: Any, key: str, kind: str, origin: str) -> int | tuple[int, int]:
    if _is_pixels(value):
        if kind in _INT_IS_BOTH_SIDES:
            return value, value
        if kind in _INT_IS_SHORTER_SIDE:
            return int(value)
        raise UsageError(
            f"{origin}: whether `{key}` {value} is the shorter side or both is not known without `image_processor_type`."
        )
    if isinstance(value, Mapping):
        if _is_pixels(value.get("shortest_edge")) and value.get("longest_edge") is None:
            return int(value["shortest_edge"])
        if _is_pixels(value.get("height")) and _is_pixels(value.get("width")):
            return int(value["height"]), int(value["width"])
    raise UsageError(f"{origin}: `{key}` must have `shortest_edge`, or `height` and `width`. Got {value!r}.")


def _filter(config: Mapping[str, Any], origin: str) -> Interpolation:
    value = config.get("resample")
    if not isinstance(value, int) or isinstance(value, bool) or value not in _FILTERS:
        raise UsageError(f"{origin}: `resample` must be the number of a filter of Pillow, 0 to 5. Got {value!r}.")
    return _FILTERS[value]


def from_timm(config: Mapping[str, Any], *, origin: str) -> Preparation:
    """The preparation that timm uses for evaluation.

    Source: timm.data.transforms_factory.transforms_imagenet_eval.

    Args:
        config: the `pretrained_cfg` of a timm `config.json`.
        origin: its path, for messages.

    Raises:
        UsageError: a field that matters is missing or not known.
    """
    shape = config.get("input_size")
    if not (isinstance(shape, list) and len(shape) == 3 and shape[0] == 3 and all(map(_is_pixels, shape))):
        raise UsageError(f"{origin}: `input_size` must be [3, height, width]. Got {shape!r}.")
    height, width = shape[1:]
    fraction = _fraction(config.get("crop_pct"), "crop_pct", origin)
    interpolation = next((name for name in _FILTERS.values() if name == config.get("interpolation")), None)
    if interpolation is None:
        known = ", ".join(_FILTERS.values())
        raise UsageError(f"{origin}: `interpolation` must be one of {known}. Got {config.get('interpolation')!r}.")
    scaled = floor(height / fraction), floor(width / fraction)
    mode = config.get("crop_mode") or "center"
    if mode == "center":
        if scaled[0] != scaled[1]:  # where timm resizes by the side that needs it, which `Fit` does not describe
            raise UsageError(f"{origin}: `input_size` {shape!r} is not square, which needs `crop_mode` squash here.")
        resize: int | tuple[int, int] = scaled[0]
    elif mode == "squash":
        resize = scaled
    else:
        raise UsageError(f"{origin}: `crop_mode` must be center or squash. Got {mode!r}.")
    # On values in [0, 1], as torchvision's ToTensor gives them.
    normalization = Normalization(
        1 / 255, _three(config.get("mean"), "mean", origin), _std(config.get("std"), "std", origin)
    )
    return Preparation(Fit(resize, interpolation, "round"), normalization, height, width)


def _read(url: str, name: str) -> Mapping[str, Any]:
    path = storage.source_url(url, name)
    if not storage.exists(path):
        raise UsageError(f"`backbone.name`: {url} has no {name}, so it is not a folder from Hugging Face.")
    try:
        document = storage.read_json(path)
    except ValueError as error:
        raise UsageError(f"`backbone.name`: {path} is not JSON.") from error
    if not isinstance(document, Mapping):
        raise UsageError(f"`backbone.name`: {path} is not a JSON object.")
    return document


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_pixels(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_PIXELS


def _number(value: Any, key: str, origin: str) -> float:
    if _is_number(value) and value > 0:
        return float(value)
    raise UsageError(f"{origin}: `{key}` must be a number above 0. Got {value!r}.")


def _fraction(value: Any, key: str, origin: str) -> float:
    if _is_number(value) and 0 < value <= 1:
        return float(value)
    raise UsageError(f"{origin}: `{key}` must be above 0, and 1 at most. Got {value!r}.")


def _three(value: Any, key: str, origin: str) -> tuple[float, float, float]:
    if isinstance(value, list) and len(value) == 3 and all(map(_is_number, value)):
        return float(value[0]), float(value[1]), float(value[2])
    raise UsageError(f"{origin}: `{key}` must be three numbers. Got {value!r}.")


def _std(value: Any, key: str, origin: str) -> tuple[float, float, float]:
    std = _three(value, key, origin)
    if min(std) <= 0:
        raise UsageError(f"{origin}: `{key}` must be three numbers above 0. Got {value!r}.")
    return std


def _both(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _triple(value: list[float] | None, default: tuple[float, float, float]) -> tuple[float, float, float]:
    return default if value is None else (value[0], value[1], value[2])
