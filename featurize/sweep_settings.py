"""What a sweep varies."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from featurize.settings import Settings
from featurize.training_settings import Metric

_SECTIONS = ("model", "training")
_FIXED = {"model.url": "`sweep.url` says where models go", "training.seed": "seeds are `sweep.seeds`"}


class SweepSettings(Settings):
    """Many models of one recipe: every setting with every seed."""

    url: str = Field(min_length=1, description="the folder of the sweep and its models")
    values: dict[str, Any] = Field(description='the values of each key, such as "training.l2" = [0.0, 0.001]')
    search: Literal["grid", "random"] = Field(
        default="grid", description="every combination of the values, or `n_settings` of them drawn at random"
    )
    n_settings: int | None = Field(default=None, ge=1, description="of a random search")
    search_seed: int = Field(default=0, ge=0, description="of a random search")
    seeds: int | list[int] = Field(default=3, description="how many, from training.seed on, or which")
    metric: Metric = Field(
        default="validation_accuracy", description="by whose mean over the seeds settings are ranked"
    )

    @model_validator(mode="after")
    def _is_a_sweep(self) -> "SweepSettings":
        if faults := _faults(self):
            raise ValueError("; ".join(faults) + ".")
        return self

    def values_by_key(self) -> dict[str, list[Any]]:
        """`values` by their whole keys, whether they were written ``"training.l2"`` or as tables within tables."""
        return dict(_flatten(self.values))

    def seeds_from(self, first: int) -> list[int]:
        """The seeds, where the recipe's own is `first`."""
        return list(range(first, first + self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in table.items():
        pairs += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _faults(settings: SweepSettings) -> list[str]:
    faults = [] if settings.values else ["`values` must name a key at least"]
    for key, values in settings.values_by_key().items():
        if key in _FIXED:
            faults.append(f"`values`: {key} cannot be varied; {_FIXED[key]}")
        elif key.partition(".")[0] not in _SECTIONS or "." not in key:
            faults.append(f"`values`: {key} must be a key of [model] or [training], such as training.l2")
        elif not isinstance(values, list) or not values:
            faults.append(f"`values`: {key} must have a list of values. Got {values!r}")
        elif len({repr(value) for value in values}) < len(values):
            faults.append(f"`values`: {key} has a value twice")
    seeds = settings.seeds
    if isinstance(seeds, int) and seeds < 1:
        faults.append(f"`seeds` must be 1 or more. Got {seeds}")
    if isinstance(seeds, list) and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
        faults.append(f"`seeds` must be different numbers, 0 or more. Got {seeds}")
    if (settings.search == "random") != (settings.n_settings is not None):
        faults.append("`n_settings` goes with `search` random, and that with it")
    return faults
