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
    """Random changes to training pixels, new in every epoch; they follow from seed, epoch and image."""

    flip: Literal["horizontal", "vertical", "both"] | None = None
    shift: Finite = Field(default=0.0, ge=0, le=0.5, description="largest shift, as a share of height and width")
    rotation: Finite = Field(default=0.0, ge=0, le=180, description="largest rotation, in degrees")
    brightness: Finite = Field(default=0.0, ge=0, lt=1, description="pixels are multiplied by 1 - this to 1 + this")


class EarlyStopping(Settings):
    """Ends the training when `metric` has not improved by `min_delta` for `patience` epochs."""

    metric: Metric = "validation_loss"
    patience: int = Field(default=5, ge=1, description="epochs")
    min_delta: Finite = Field(default=0.0, ge=0)


class TrainingSettings(Settings):
    """How the network is trained. The defaults are the Caltech-256 recipe: SGD with Nesterov momentum."""

    optimizer: Literal["sgd", "adagrad", "adam", "rmsprop"] = "sgd"
    learning_rate: Finite = Field(default=0.01, gt=0)
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="schedule of the learning rate: cosine falls to zero over all steps"
    )
    momentum: Finite = Field(default=0.8, ge=0, lt=1, description="momentum of sgd")
    nesterov: bool = Field(default=True, description="Nesterov momentum for sgd")
    l2: Finite = Field(default=0.0, ge=0, description="weight of the sum of the squared kernels in the loss")
    gradient_normalization: Literal["layer"] | None = Field(
        default=None, description="layer: scale the gradient of each layer, kernel and bias together, to length 1"
    )
    label_smoothing: Finite = Field(
        default=0.0, ge=0, lt=1, description="share of each label that is spread over all classes"
    )
    class_weights: Literal["balanced"] | dict[str, Finite] | None = Field(
        default=None,
        description="weight of each class in the loss; balanced: inverse to the class's training rows",
    )
    augmentation: AugmentationSettings | None = Field(default=None, description="random changes to pixels")
    batch_size: int = Field(default=32, ge=1, description="rows per rank and step")
    epochs: int = Field(default=30, ge=1)
    early_stopping: EarlyStopping | None = None
    best_by: Metric = Field(
        default="validation_accuracy", description="metric that chooses the epoch whose model is kept"
    )
    seed: int = Field(default=42, ge=0, lt=2**32)
    cache: Literal["auto", "memory", "stream"] = Field(
        default="auto",
        description="memory: features in each rank; stream: from disk; auto: memory up to `cache_gb`",
    )
    cache_gb: Finite = Field(default=4.0, gt=0, description="gigabytes of features in one rank")
    shuffle_rows: int = Field(
        default=32768, ge=1, description="rows of all ranks in the buffers that shuffle rows from disk"
    )
    timeout_s: Finite = Field(
        default=40.0, ge=5, le=3600, description="seconds after which ranks give up on a silent rank"
    )

    @model_validator(mode="after")
    def _fits_the_optimizer(self) -> "TrainingSettings":
        unused = {"momentum", "nesterov"} & self.model_fields_set if self.optimizer != "sgd" else set()
        if unused:
            keys = " and ".join(f"`{key}`" for key in sorted(unused))
            raise ValueError(f"{keys} need the optimizer sgd. Got optimizer {self.optimizer!r}.")
        return self
