"""The section `[sweep]` of a recipe: what a sweep varies."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from featurize.recipes.toml_settings import Settings
from featurize.recipes.training_section import Metric

EPOCHS = "training.epochs"
_SECTIONS = ("model", "training")
COLUMN = "features.column"
_FIXED = {"model.url": "`sweep.url` sets where models go", "training.seed": "`sweep.seeds` sets the seeds"}


class ValueRange(Settings):
    """The numbers from `low` to `high`; only whole numbers where both are written without a decimal point."""

    low: int | float
    high: int | float
    log: bool = Field(default=False, description="logarithmic: as many between 0.01 and 0.1 as between 0.1 and 1")

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class SweepSettings(Settings):
    """Many models from one recipe: every setting with every seed."""

    url: str = Field(min_length=1, description="URL of the folder for the sweep and its models")
    values: dict[str, Any] = Field(
        description='the values of each key: "training.l2" = [0.0, 0.001], or { low = 1e-4, high = 0.1, log = true }'
    )
    search: Literal["grid", "random", "bayesian"] = Field(
        default="grid",
        description="every combination of the values, or `n_settings` of them: random, or proposed from earlier results",
    )
    n_settings: int | None = Field(default=None, ge=1, description="number of settings of a random or Bayesian search")
    search_seed: int = Field(default=0, ge=0, description="seed of a random or Bayesian search")
    halving: int | None = Field(
        default=None,
        ge=2,
        description="each round keeps one setting in this many, for this many times the epochs; default: no halving",
    )
    min_epochs: int = Field(default=1, ge=1, description="fewest epochs in the first round of `halving`")
    seeds: int | list[int] = Field(default=3, description="number of seeds, from training.seed on, or a list of seeds")
    metric: Metric = Field(default="validation_accuracy", description="settings are ranked by its mean over the seeds")

    @model_validator(mode="after")
    def _is_a_sweep(self) -> "SweepSettings":
        if faults := _faults(self):
            raise ValueError("; ".join(faults) + ".")
        return self

    def values_by_key(self) -> dict[str, list[Any] | ValueRange]:
        """`values` by their whole keys, whether they were written ``"training.l2"`` or as tables within tables."""
        return {
            key: ValueRange.model_validate(each) if isinstance(each, dict) else each
            for key, each in _flatten(self.values)
        }

    def seeds_from(self, first: int) -> list[int]:
        """The seeds, where the recipe's own seed is `first`."""
        return list(range(first, first + self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in table.items():
        is_table = isinstance(value, dict) and not {"low", "high"} & value.keys()
        pairs += _flatten(value, f"{prefix}{key}.") if is_table else [(f"{prefix}{key}", value)]
    return pairs


def _faults(settings: SweepSettings) -> list[str]:
    faults = [] if settings.values else ["`values` must name at least one key"]
    for key, values in _flatten(settings.values):
        if key in _FIXED:
            faults.append(f"`values`: {key} cannot be varied; {_FIXED[key]}")
        elif key != COLUMN and (key.partition(".")[0] not in _SECTIONS or "." not in key):
            faults.append(
                f"`values`: {key} must be a key of [model] or [training], such as training.l2, or features.column"
            )
        elif isinstance(values, dict):
            faults += [f"`values`: {key} {fault}" for fault in _range_faults(values, settings.search)]
        elif not isinstance(values, list) or not values:
            faults.append(f"`values`: {key} must have a list of values, or a range with low and high. Got {values!r}")
        elif len({repr(value) for value in values}) < len(values):
            faults.append(f"`values`: {key} has a value twice")
        if key == EPOCHS and settings.halving is not None:
            faults.append(f"`values`: {EPOCHS} cannot be varied, as `halving` varies it")
    seeds = settings.seeds
    if isinstance(seeds, int) and seeds < 1:
        faults.append(f"`seeds` must be 1 or more. Got {seeds}")
    if isinstance(seeds, list) and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
        faults.append(f"`seeds` must be different numbers, 0 or more. Got {seeds}")
    if (settings.search == "grid") != (settings.n_settings is None):
        faults.append("`n_settings` needs `search` random or bayesian, and these need it")
    if settings.halving is not None and settings.search == "bayesian":
        faults.append("`halving` needs `search` grid or random: a Bayesian search learns from complete trainings")
    return faults


def _range_faults(values: Mapping[str, Any], search: str) -> list[str]:
    low, high, log = (values.get(name) for name in ("low", "high", "log"))
    if unknown := values.keys() - ValueRange.model_fields.keys():
        return [f"is a range, which can have only low, high and log. Got {', '.join(sorted(unknown))}"]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (low, high)) or low >= high:  # type: ignore[operator]
        return [f"must have numbers low and high, low less than high. Got {low!r} and {high!r}"]
    if log not in (None, False, True):
        return [f"must have log = true or false. Got {log!r}"]
    if log and low <= 0:  # type: ignore[operator]
        return [f"must have a low greater than 0, as it is logarithmic. Got {low!r}"]
    return ["is a range, which needs `search` random or bayesian"] if search == "grid" else []
