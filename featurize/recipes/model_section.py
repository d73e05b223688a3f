"""The section `[model]` of a recipe: the network to train, and the preparation of its input."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from featurize.recipes.toml_settings import Settings

HEADS = ("softmax_head", "mlp_head")
PIXEL_MODELS = ("mnist_mlp", "mnist_convnet", "landscapes_convnet")
MODEL_NAMES = (*HEADS, *PIXEL_MODELS)
UNFROZEN = "unfrozen"
_OWN_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_NAMES_IN_WORDS = f"{', '.join((*MODEL_NAMES, UNFROZEN))}, or your own function as module:function"


def _check_name(name: str) -> str:
    if name in (*MODEL_NAMES, UNFROZEN) or _OWN_FUNCTION.fullmatch(name):
        return name
    raise ValueError(f"must be one of {_NAMES_IN_WORDS}. Got {name!r}.")


Name = Annotated[str, AfterValidator(_check_name)]


class ModelSettings(Settings):
    """The network to train on the features."""

    name: Name = Field(default="softmax_head", description=_NAMES_IN_WORDS)
    url: str = Field(min_length=1, description="URL of the folder for the model")
    pixels: Literal["scale", "standardize", "binarize"] | None = Field(
        default=None,
        description="preparation of pixels; default: scale, for landscapes_convnet standardize",
    )
    l2_normalize: bool = Field(default=False, description="scale every row of features to length 1")
    standardize: bool = Field(
        default=False, description="scale features to mean 0 and deviation 1 on the training split, after l2_normalize"
    )
    hidden: list[int] | None = Field(default=None, description="units of each hidden layer of mlp_head")
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="share dropped after each hidden layer of mlp_head"
    )
    options: dict[str, Any] = Field(default={}, description="keyword arguments of your own function")
    head: str | None = Field(
        default=None,
        min_length=1,
        description="unfrozen: the trained head (folder, run id, name@alias or zk://host:port/path) to train with its backbone",
    )
    unfreeze_from: str | None = Field(
        default=None, min_length=1, description="unfrozen: name of the first layer of the backbone to train"
    )

    @model_validator(mode="after")
    def _fits_the_name(self) -> "ModelSettings":
        if faults := _faults(self):
            raise ValueError("; ".join(faults) + ".")
        return self

    @property
    def is_own_function(self) -> bool:
        """Whether `name` is a user's `module:function`."""
        return ":" in self.name


def _faults(settings: ModelSettings) -> list[str]:
    name, faults = settings.name, list[str]()
    if settings.hidden is not None and (not settings.hidden or min(settings.hidden) < 1):
        faults.append(f"`hidden` must list the units of at least one layer, each 1 or more. Got {settings.hidden}")
    of_mlp = [key for key in ("hidden", "dropout") if getattr(settings, key) is not None and name != "mlp_head"]
    faults += [f"`{key}` is for mlp_head only" for key in of_mlp]
    if settings.options and not settings.is_own_function:
        faults.append("`options` are for your own function only")
    of_features = [key for key in ("standardize", "l2_normalize") if getattr(settings, key) and name in PIXEL_MODELS]
    faults += [f"`{key}` is for features, not for {name}; see `pixels`" for key in of_features]
    return faults + _faults_of_unfreezing(settings)


def _faults_of_unfreezing(settings: ModelSettings) -> list[str]:
    keys = ("head", "unfreeze_from")
    if settings.name != UNFROZEN:
        return [f"`{key}` is for {UNFROZEN} only" for key in keys if getattr(settings, key) is not None]
    faults = [f"`{key}` is required with {UNFROZEN}" for key in keys if getattr(settings, key) is None]
    given = [key for key in ("pixels", "standardize", "l2_normalize") if getattr(settings, key)]
    return faults + [
        f"`{key}` cannot be used with {UNFROZEN}: backbone and head keep their preparation" for key in given
    ]
