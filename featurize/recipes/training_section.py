"""The section `[training]` of a recipe: how a network is trained."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from featurize.recipes.toml_settings import Settings

Metric = Literal[
    "loss",
    "accuracy",
    "validation_loss",
    "validation_accuracy",
    "validation_precision",
    "validation_recall",
    "validation_f1",
]
METRICS: tuple[str, ...] = get_args(Metric)


def _check_finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"must be a finite number. Got {value}.")
    return value


Finite = Annotated[float, AfterValidator(_check_finite)]


class AugmentationSettings(Settings):
    """Random changes to training pixels, new in every epoch, drawn from seed, epoch and image."""

    flip: Literal["horizontal", "vertical", "both"] | None = None
    shift: Finite = Field(default=0.0, ge=0, le=0.5, description="at most this part of height and width, either way")
    rotation: Finite = Field(default=0.0, ge=0, le=180, description="at most so many degrees, either way")
    brightness: Finite = Field(default=0.0, ge=0, lt=1, description="pixels times 1 - this to 1 + this")


class EarlyStopping(Settings):
    """Training ends when `metric` has not got better by `min_delta` for `patience` epochs."""

    metric: Metric = "validation_loss"
    patience: int = Field(default=5, ge=1, description="epochs")
    min_delta: Finite = Field(default=0.0, ge=0)


class TrainingSettings(Settings):
    """How it is trained. The defaults are the Caltech-256 recipe: SGD with Nesterov momentum."""

    optimizer: Literal["sgd", "adagrad", "adam", "rmsprop"] = "sgd"
    learning_rate: Finite = Field(default=0.01, gt=0)
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="of the learning rate: cosine falls to zero over all steps"
    )
    momentum: Finite = Field(default=0.8, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(default=True, description="of sgd")
    l2: Finite = Field(default=0.0, ge=0, description="times the sum of the squared kernels is added to the mean loss")
    gradient_normalization: Literal["layer"] | None = Field(
        default=None, description="layer: the gradient of each layer, kernel and bias together, is scaled to length 1"
    )
    label_smoothing: Finite = Field(
        default=0.0, ge=0, lt=1, description="this part of each label is spread over all classes"
    )
    class_weights: Literal["balanced"] | dict[str, Finite] | None = Field(
        default=None,
        description="of the rows of each class in the loss; balanced: inverse to the class's training rows",
    )
    augmentation: AugmentationSettings | None = Field(default=None, description="of pixels")
    batch_size: int = Field(default=32, ge=1, description="rows per rank and step")
    epochs: int = Field(default=30, ge=1)
    early_stopping: EarlyStopping | None = None
    best_by: Metric = Field(default="validation_accuracy", description="the model of the best epoch is the one kept")
    seed: int = Field(default=42, ge=0, lt=2**32)
    cache: Literal["auto", "memory", "stream"] = Field(
        default="auto", description="memory: the features once per rank; auto: that, if they take up to `cache_gb`"
    )
    cache_gb: Finite = Field(default=4.0, gt=0, description="gigabytes of features of one rank")
    shuffle_rows: int = Field(default=32768, ge=1, description="rows of all ranks among which a stream is shuffled")
    timeout_s: Finite = Field(
        default=40.0, ge=5, le=3600, description="ranks give up on one that is not heard of for so long"
    )

    @model_validator(mode="after")
    def _fits_the_optimizer(self) -> "TrainingSettings":
        unused = {"momentum", "nesterov"} & self.model_fields_set if self.optimizer != "sgd" else set()
        if unused:
            keys = " and ".join(f"`{key}`" for key in sorted(unused))
            raise ValueError(f"{keys} go with the optimizer sgd only. Got optimizer {self.optimizer!r}.")
        return self
