"""The section `[backbone]`: which frozen network, how images are prepared for it, and what computes it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from featurize.recipes.toml_settings import Settings

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Sides = Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)]
PerChannel = Annotated[list[float], Field(min_length=3, max_length=3)]
_NORMALIZATION = ("mean", "std", "scale", "channel_order")
DECODING = ("color", "white", "resize", "interpolation", "antialias")
"""The keys that say how an image becomes pixels, of `[backbone]` or else of `[images]`."""
ResizeWay = Literal["trained", "stretch", "crop", "pad"]
Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
_TORCH = (
    '`torch.onnx.export(model, torch.zeros(1, 3, 224, 224), "{new}.onnx", input_names=["images"], '
    'dynamic_axes={{"images": {{0: "n"}}}})`'
)
_KERAS = (
    'Convert it once: `keras.models.load_model("{old}", compile=False).save("{new}.keras")`. If it has weights alone, name their '
    "network, and the file in `backbone.weights`"
)
SAVED_MODEL = "saved_model.pb"
"""The file by which a folder is known for a SavedModel."""
_CONVERSIONS = {  # the endings of files that are not read, what they are, and how one makes of them what is read
    ".h5": ("an HDF5 file", _KERAS),
    ".hdf5": ("an HDF5 file", _KERAS),
    ".tflite": (
        "a file of TensorFlow Lite",
        "Convert it once: `python -m tf2onnx.convert --tflite {old} --output {new}.onnx`",
    ),
    SAVED_MODEL: (
        "a SavedModel of TensorFlow",
        "Convert it once: `python -m tf2onnx.convert --saved-model {old} --output {new}.onnx`",
    ),
    ".pb": (
        "a graph of TensorFlow",
        "Convert it once: `python -m tf2onnx.convert --graphdef {old} --inputs INPUT:0 --outputs OUTPUT:0 --output {new}.onnx`",
    ),
    ".safetensors": (
        "a file of weights alone",
        f"Name its folder, which has config.json, or export the model: {_TORCH}",
    ),
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), ("a file of PyTorch", f"Export the model: {_TORCH}")),
}


def not_read(name: str) -> str | None:
    """Why a file is no backbone, and how one makes one of it; None if its name does not end like one that is not read.

    Args:
        name: its path; of a SavedModel that of `saved_model.pb` in its folder.
    """
    ending = next((each for each in _CONVERSIONS if name.lower().endswith(each)), None)
    if ending is None:
        return None
    is_folder = ending == SAVED_MODEL
    old = (name.rpartition("/")[0] or ".") if is_folder else name
    new = old.rpartition("/")[2] if is_folder else name.rpartition("/")[2][: -len(ending)]
    what, how = _CONVERSIONS[ending]
    advice = how.format(old=old, new=new.strip(".") or "model")
    return f"{name} is {what}, and only .keras and .onnx files are read. {advice}"


class BackboneSettings(Settings):
    """The frozen network. `pixels` is not a network: it only resizes images, and its features are the pixels."""

    name: str = Field(
        min_length=1,
        description="EfficientNetLite0, a keras.applications model, the path of a .keras or .onnx file, the path of a folder "
        "from Hugging Face, or pixels",
    )
    layer: str | None = Field(
        default=None,
        description="the layer or tensor whose output is the features, with `:cls` or `:mean` for a token or a mean; several "
        'are joined by " + "; default: the last',
    )
    layers: list[str] | None = Field(
        default=None,
        min_length=1,
        description="several layers in place of `layer`: a column `features_<layer>` for each",
    )
    column: str | None = Field(
        default=None, pattern="^features(_[a-z0-9_]+)?$", description="name of the column; default: from layer or name"
    )
    weights: str | None = Field(default=None, description="imagenet, imagenet_or_random, random, or a path")
    weights_sha256: Sha256 | None = Field(default=None, description="SHA-256 of the weights file")
    seed: int = Field(default=42, ge=0, lt=2**32, description="seed of random weights")
    preprocessing: Literal["none", "caffe", "tf", "torch"] | None = Field(
        default=None, description="preparation of RGB in [0, 255]; for files, which do not say it; known for the others"
    )
    scale: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="factor for values in [0, 255], first; default: 1"
    )
    mean: PerChannel | None = Field(default=None, description="subtracted from each channel, second; default: 0")
    std: PerChannel | None = Field(default=None, description="divides each channel, third; default: 1")
    channel_order: Literal["rgb", "bgr"] | None = Field(default=None, description="default: rgb")
    resize: Sides | ResizeWay | None = Field(
        default=None,
        description="pixels of the shorter side, or [height, width], or a way as in `images.resize`, which is the default",
    )
    crop: Sides | None = Field(
        default=None, description="pixels of the central part, or [height, width]; default: the size of the input"
    )
    interpolation: Filter | None = Field(default=None, description="Pillow's filter; default: `images.interpolation`")
    antialias: bool | None = Field(default=None, description="default: `images.antialias`")
    color: Literal["srgb", "raw"] | None = Field(default=None, description="default: `images.color`")
    white: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="default: `images.white`")
    engine: Literal["auto", "tensorflow", "openvino", "onnxruntime"] = Field(
        default="auto", description="what computes the network; auto: the fastest here, measured once"
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        default="auto",
        description="of its products; int8 is calibrated on the images, and refused if heads lose accuracy; auto: never int8",
    )
    quantized: str | None = Field(
        default=None,
        description="_firn/networks/*.onnx of another set, whose features in int8 these must equal; default: made for this set",
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="images in one forward pass; default: measured, or 32"
    )
    height: int | None = Field(
        default=None, ge=1, le=4096, description="height in pixels; required where the network takes images of any size"
    )
    width: int | None = Field(default=None, ge=1, le=4096, description="width in pixels")
    channels: Literal[1, 3] | None = Field(
        default=None, description="channels of pixels: 1 is grey, 3 is RGB (the default)"
    )

    @model_validator(mode="after")
    def _fits_the_kind(self) -> "BackboneSettings":
        faults = _faults_of_pixels(self) if self.name == "pixels" else _faults_of_network(self)
        if faults:
            raise ValueError("; ".join(faults) + ".")
        return self

    @property
    def is_file(self) -> bool:
        """Whether `name` is the path of a file."""
        return self.is_keras_file or self.is_onnx_file

    @property
    def is_keras_file(self) -> bool:
        """Whether `name` is the path of a .keras file."""
        return self.name.endswith(".keras")

    @property
    def is_onnx_file(self) -> bool:
        """Whether `name` is the path of an ONNX file."""
        return self.name.endswith(".onnx")

    @property
    def is_folder(self) -> bool:
        """Whether `name` is the path of a folder, which has a slash, as in ./dinov2."""
        return "/" in self.name and not self.is_file

    @property
    def states_normalization(self) -> bool:
        """Whether the recipe itself says how values are scaled."""
        return any(getattr(self, key) is not None for key in _NORMALIZATION)

    @property
    def states_size(self) -> bool:
        """Whether the recipe itself says to which size images are resized."""
        return not (self.resize is None or isinstance(self.resize, str))


def _faults_of_pixels(settings: BackboneSettings) -> list[str]:
    if settings.precision == "int8":
        return ["`precision` cannot be int8 with `pixels`, which no network computes"]
    missing = [f"`{key}` is required with `pixels`" for key in ("height", "width") if getattr(settings, key) is None]
    unused = ("layer", "layers", "weights", "weights_sha256", "preprocessing", *_NORMALIZATION, "crop")
    if settings.resize == "trained":
        missing.append('`resize` cannot be "trained" with `pixels`, which no training made')
    return missing + [f"`{key}` cannot be used with `pixels`" for key in unused if getattr(settings, key) is not None]


def _faults_of_network(settings: BackboneSettings) -> list[str]:
    unread = not_read(settings.name)
    if unread is not None:
        return [f"`name`: {unread}"]
    faults = ["`channels` is for `pixels` only"] if settings.channels is not None else []
    faults += _faults_of_layers(settings)
    if settings.preprocessing is not None and settings.states_normalization:
        faults.append("`preprocessing` cannot be used with `scale`, `mean`, `std` or `channel_order`, which replace it")
    if settings.std is not None and not all(value > 0 for value in settings.std):
        faults.append("`std` must be more than 0")
    if settings.crop is not None and not settings.states_size:
        faults.append("`crop` needs `resize` to be a size")
    if settings.engine == "onnxruntime" and settings.precision == "bfloat16":
        faults.append("ONNX Runtime computes in float32 only: `precision` cannot be bfloat16")
    if settings.engine == "tensorflow" and settings.precision == "int8":
        faults.append("TensorFlow does not compute in int8: `engine` must be auto, openvino or onnxruntime")
    if settings.quantized is not None and settings.precision != "int8":
        faults.append('`quantized` needs `precision` to be "int8"')
    if settings.engine == "tensorflow" and (settings.is_onnx_file or settings.is_folder):
        faults.append(
            "TensorFlow does not compute ONNX files and folders: `engine` must be auto, openvino or onnxruntime"
        )
    if settings.is_file or settings.is_folder:
        if settings.preprocessing is None and not settings.states_normalization and not settings.is_folder:
            kind = ".keras" if settings.is_keras_file else ".onnx"
            faults.append(
                f"`preprocessing` is required with {'an' if settings.is_onnx_file else 'a'} {kind} file, which does not say how "
                'its input was prepared: "none" (RGB in [0, 255]), "caffe", "tf" or "torch"; or say `scale`, `mean` and `std`'
            )
        if settings.weights is not None:
            faults.append("`weights` cannot be used with a file, which has its own; check it with `weights_sha256`")
        return faults
    if settings.preprocessing is not None or settings.states_normalization:
        stated = "`preprocessing`" if settings.preprocessing is not None else "The preparation"
        faults.append(f"{stated} of {settings.name} is known; remove it")
    if settings.weights_sha256 is not None and settings.weights in (None, "imagenet", "imagenet_or_random", "random"):
        faults.append("`weights_sha256` needs `weights` to be a path")
    return faults


def _faults_of_layers(settings: BackboneSettings) -> list[str]:
    layers = settings.layers
    if layers is None:
        return []
    faults = ["`layer` and `layers` cannot be used together"] if settings.layer is not None else []
    if len(set(layers)) < len(layers):
        faults.append("`layers` names a layer twice")
    if settings.column is not None and len(layers) > 1:
        faults.append("`column` names one column, and `layers` makes several")
    return faults
