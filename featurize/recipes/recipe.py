"""Recipes: one TOML file describes a whole run. `featurize run` reads its upper half, `finetune fit` its lower half."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from featurize import storage
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.errors import UsageError
from featurize.recipes.backbone_section import DECODING, BackboneSettings, Filter, ResizeWay
from featurize.recipes.feature_columns import ONLY, AskedColumn, asked_columns
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.sweep_section import SweepSettings
from featurize.recipes.toml_settings import Overrides, Settings, apply_overrides, check_settings, read_toml
from featurize.recipes.training_section import TrainingSettings

SPLITS = ("train", "validation", "test")
JOINED = ("predictions", "images", "labels")
"""The keys of `[features]` that name tables for `where`."""


class FractionSplit(Settings):
    """Fractions of the images in each split, drawn by a hash of the image's bytes and `seed`. They add up to 1."""

    train: float = Field(default=0.6, gt=0, le=1)
    validation: float = Field(default=0.2, ge=0, lt=1)
    test: float = Field(default=0.2, ge=0, lt=1)
    seed: int = 7

    @model_validator(mode="after")
    def _adds_up(self) -> "FractionSplit":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"`train`, `validation` and `test` must add up to 1. Got {total:g}.")
        return self


def _check_split(value: Any) -> Any:
    if value == "folders" or isinstance(value, FractionSplit):
        return value
    if isinstance(value, dict):
        return FractionSplit.model_validate(value)
    raise ValueError(f'must be "folders" or a table of fractions. Got {value!r}.')


Split = Annotated[FractionSplit | Literal["folders"], BeforeValidator(_check_split)]


class ImagesSettings(Settings):
    """Where the images come from and how they are divided into splits."""

    source: str = Field(min_length=1, description="a folder per class, an images table, or a data set card")
    split: Split | None = Field(default=None, description="default: the source's own, or else fractions 0.6/0.2/0.2")
    color: Literal["srgb", "raw"] | None = Field(
        default=None,
        description="srgb: pictures with a colour profile are converted; raw: profiles are ignored; default: as the rows that "
        "exist, or else srgb",
    )
    white: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="the value that is white in grey images of more than 8 bits, such as 1, 255 or 4095; default: what their "
        "format says, which for floats is nothing",
    )
    resize: ResizeWay | None = Field(
        default=None,
        description="trained: as the network was trained to see pictures; stretch: to the input's shape; crop: the largest "
        "central part of that shape; pad: all of it, with black borders; default: as the rows that exist, or trained where that "
        "is known, or else stretch",
    )
    interpolation: Filter | None = Field(
        default=None, description="Pillow's filter; default: that of the training where it is known, or else bilinear"
    )
    antialias: bool | None = Field(
        default=None,
        description="average the pixels of pictures that become smaller; false, with nearest, bilinear or bicubic: as TensorFlow "
        "does by default; default: true",
    )
    follow_links: bool = Field(
        default=False, description="follow links that lead out of the folder; otherwise they are rejects"
    )
    max_reject_fraction: float = Field(
        default=MAX_REJECT_FRACTION,
        ge=0,
        le=1,
        description="largest share of unreadable images; above it nothing is published",
    )
    decode_timeout_s: float = Field(
        default=DECODE_TIMEOUT_S, gt=0, le=3600, description="seconds; an image that takes longer to decode is rejected"
    )


class FeaturesSettings(Settings):
    """Where the feature set is, and which of its rows are used in training."""

    url: str = Field(min_length=1)
    column: str | None = Field(
        default=None, min_length=1, description="the column of features of a set with several; default: the only one"
    )
    rows_per_group: int = Field(
        default=512, ge=1, description="most rows in a Parquet row group of at most 8 MiB a column"
    )
    where: str | None = Field(
        default=None,
        min_length=1,
        max_length=4000,  # a registry stores it as one parameter; long lists of images belong in `labels`
        description="a condition in SQL that selects rows, in all splits; default: all rows",
    )
    predictions: str | None = Field(
        default=None, min_length=1, description="URL of predictions, whose view `latest` can be used in `where`"
    )
    images: str | None = Field(default=None, min_length=1, description="URL of an images table for `where`")
    labels: str | None = Field(
        default=None,
        min_length=1,
        description="a .csv or .parquet file with `image_id` and any columns for `where`",
    )

    @model_validator(mode="after")
    def _has_use_for_tables(self) -> "FeaturesSettings":
        unused = [f"`{name}`" for name in JOINED if getattr(self, name) is not None]
        if unused and self.where is None:
            raise ValueError(f"{', '.join(unused)} {'need' if len(unused) > 1 else 'needs'} `where`.")
        return self


class RegistrySettings(Settings):
    """Where MLflow logs trainings and evaluations. It changes no result, and models do not store it."""

    url: str | None = Field(
        default=None,
        min_length=1,
        description="MLflow's tracking URI; default: MLFLOW_TRACKING_URI, or else sqlite:///runs/mlflow.db",
    )
    experiment: str = Field(default="firn", min_length=1)
    name: str | None = Field(
        default=None,
        min_length=1,
        description="name of the registered model, without / and :; every trained model becomes a version of it",
    )
    artifacts: str | None = Field(
        default=None,
        min_length=1,
        description="folder for files, if `url` is a database; default: mlartifacts beside the SQLite file",
    )
    backbone: bool = Field(default=True, description="log a head with its backbone, so that it takes images")

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        """What MLflow would refuse only after the training."""
        if name is not None and (not name.strip() or {"/", ":"} & set(name)):
            raise ValueError("a registered model's name must not be blank, nor have / or : in it")
        return name


class Recipe(Settings):
    """A whole run. A command takes the half that it needs: `upper_half` or `lower_half`."""

    images: ImagesSettings | None = None
    backbone: BackboneSettings | None = None
    backbones: list[BackboneSettings] | None = Field(
        default=None, min_length=1, description="several, in place of `backbone`: a column of features for each"
    )
    features: FeaturesSettings | None = None
    model: ModelSettings | None = None
    training: TrainingSettings = TrainingSettings()
    registry: RegistrySettings | None = None
    sweep: SweepSettings | None = None

    @model_validator(mode="after")
    def _has_distinct_columns(self) -> "Recipe":
        if self.backbone is not None and self.backbones is not None:
            raise ValueError("`backbone` and `backbones` cannot be used together.")
        asked_columns(_backbones_of(self))
        return self


class FeaturizeRecipe(Settings):
    """The upper half: images to features."""

    images: ImagesSettings
    backbone: BackboneSettings | None = None
    backbones: list[BackboneSettings] | None = None
    features: FeaturesSettings

    @property
    def columns(self) -> tuple[AskedColumn, ...]:
        """The columns of features. What `[images]` says of decoding counts for backbones that do not say it themselves."""
        said = {key: value for key in DECODING if (value := getattr(self.images, key)) is not None}
        sections = [
            one.model_copy(update={key: value for key, value in said.items() if getattr(one, key) is None})
            for one in _backbones_of(self)
        ]
        return asked_columns(sections)

    @property
    def has_one_plain_column(self) -> bool:
        """Whether the set has the one column `features`, made by `backbone`, as in version 0.2."""
        return self.backbone is not None and [column.name for column in self.columns] == [ONLY]


class FinetuneRecipe(Settings):
    """The lower half: features to a model."""

    features: FeaturesSettings
    model: ModelSettings
    training: TrainingSettings = TrainingSettings()
    registry: RegistrySettings | None = Field(default=None, exclude=True)  # the same model wherever it is logged


def read_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Overrides | None = None) -> Recipe:
    """The recipe in a TOML file, checked, with single settings replaced.

    Args:
        recipe: the path of a TOML file; or the sections by name, as a TOML reader returns them; or what this function returned.
        overrides: values by dotted key, as in ``{"images.source": "photos"}``; or texts of the form ``images.source=photos``,
            as `--set` takes them.

    Raises:
        UsageError: The file cannot be read, or has faults; the message lists all of them.
    """
    document = recipe if isinstance(recipe, Mapping) else _document_of(recipe)
    found = check_settings(Recipe, apply_overrides(document, overrides or ()), origin=origin_of(recipe))
    storage.give(*_urls_in(found.model_dump()))
    return found


def _urls_in(value: Any) -> Iterator[str]:
    """The texts of a recipe that may be URLs."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _urls_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _urls_in(inner)
    elif isinstance(value, str) and "/" in value:
        yield value


def origin_of(recipe: str | Path | Mapping[str, Any] | Recipe) -> str:
    """The name of a recipe in messages: its path, if it has one."""
    return str(recipe) if isinstance(recipe, str | Path) else "the recipe"


def _document_of(recipe: str | Path | Recipe) -> dict[str, Any]:
    return recipe.model_dump(exclude_unset=True) if isinstance(recipe, Recipe) else read_toml(recipe)


def upper_half(recipe: Recipe, *, origin: str) -> FeaturizeRecipe:
    """The sections of `recipe` that `featurize run` needs.

    Raises:
        UsageError: A section is missing.
    """
    if recipe.images is None or not _backbones_of(recipe) or recipe.features is None:
        names = ("images", *(() if recipe.backbones else ("backbone",)), "features")
        raise UsageError(_missing_sections(recipe, names, origin=origin))
    features = FeaturesSettings(url=recipe.features.url, rows_per_group=recipe.features.rows_per_group)
    return FeaturizeRecipe(
        images=recipe.images, backbone=recipe.backbone, backbones=recipe.backbones, features=features
    )


def lower_half(recipe: Recipe, *, origin: str) -> FinetuneRecipe:
    """The sections of `recipe` that `finetune fit` needs.

    Raises:
        UsageError: A section is missing.
    """
    if recipe.features is None or recipe.model is None:
        raise UsageError(_missing_sections(recipe, ("features", "model"), origin=origin))
    return FinetuneRecipe(
        features=recipe.features, model=recipe.model, training=recipe.training, registry=recipe.registry
    )


def _backbones_of(recipe: Recipe | FeaturizeRecipe) -> list[BackboneSettings]:
    return [recipe.backbone] if recipe.backbone is not None else list(recipe.backbones or ())


def _missing_sections(recipe: Recipe, names: Sequence[str], *, origin: str) -> str:
    missing = [f"[{name}]" for name in names if getattr(recipe, name) is None]
    return f"{origin}: the section{'s' if len(missing) > 1 else ''} {', '.join(missing)} is missing."
