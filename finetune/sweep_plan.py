"""Which models a sweep is of: every setting with every seed, each checked and given its identity before anything is trained."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurize import storage
from featurize.errors import UsageError
from featurize.manifests import FeaturesManifest, read_features_manifest
from featurize.recipe import FinetuneRecipe, Recipe
from featurize.settings import check_settings
from featurize.sweep_settings import SweepSettings
from finetune.plans import TrainingPlan, plan_training
from finetune.sweep_folder import MODELS_FOLDER

_ID_DIGITS = 16  # of the model's identity, in the name of its folder


@dataclass(frozen=True)
class PlannedTrial:
    """One model to be.

    Attributes:
        values: of the swept keys.
        plan: its `recipe.model.url` is the model's folder in the sweep.
    """

    values: dict[str, Any]
    plan: TrainingPlan

    @property
    def seed(self) -> int:
        """That of the training."""
        return self.plan.recipe.training.seed


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that has been checked and not begun.

    Attributes:
        recipe: of every trial, but for its values and its seed.
    """

    url: str
    settings: SweepSettings
    recipe: FinetuneRecipe
    manifest: FeaturesManifest
    trials: list[PlannedTrial]


def plan_sweep(recipe: Recipe, *, origin: str) -> SweepPlan:
    """The trials of the sweep that `recipe` asks for.

    Args:
        origin: what to call the recipe in errors.

    Raises:
        UsageError: a section is missing, a setting is wrong, or there is no feature set; of many wrong settings the first few.
    """
    if recipe.sweep is None or recipe.features is None or recipe.model is None:
        missing = [f"[{name}]" for name in ("features", "model", "sweep") if getattr(recipe, name) is None]
        raise UsageError(f"{origin}: the section{'s' if len(missing) > 1 else ''} {', '.join(missing)} is missing.")
    sweep, url = recipe.sweep, storage.absolute_url(recipe.sweep.url)
    document = recipe.model_dump(include={"features", "model", "training", "registry"}, exclude_unset=True)
    base = check_settings(FinetuneRecipe, document, origin=origin)
    manifest = read_features_manifest(recipe.features.url)
    trials, faults = list[PlannedTrial](), list[str]()
    for values in list_settings(sweep):
        try:
            for seed in sweep.seeds_from(base.training.seed):
                changed = _changed(document, {**values, "training.seed": seed})
                own = check_settings(FinetuneRecipe, changed, origin=f"{origin} with {in_words(values)}")
                trials.append(_plan_trial(own, values, url=url, manifest=manifest))
        except UsageError as error:
            faults.append(str(error))
    if faults:
        more = f"\n... and {len(faults) - 3} more settings." if len(faults) > 3 else ""
        raise UsageError("\n".join(faults[:3]) + more)
    return SweepPlan(url=url, settings=sweep, recipe=base, manifest=manifest, trials=trials)


def list_settings(sweep: SweepSettings) -> list[dict[str, Any]]:
    """The combinations of values that are tried, in the order of the recipe: all, or some drawn at random without repetition."""
    values = sweep.values_by_key()
    total = math.prod(len(each) for each in values.values())
    if sweep.n_settings is None or sweep.n_settings >= total:
        return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    random = np.random.default_rng(sweep.search_seed)
    places = random.permutation(total)[: sweep.n_settings]  # so that more settings are these and others
    shape = tuple(len(each) for each in values.values())
    return [
        {key: each[place] for (key, each), place in zip(values.items(), np.unravel_index(number, shape), strict=True)}
        for number in places
    ]


def in_words(values: dict[str, Any]) -> str:
    """A setting for people: ``training.learning_rate = 0.1, training.l2 = 0``."""
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _plan_trial(
    recipe: FinetuneRecipe, values: dict[str, Any], *, url: str, manifest: FeaturesManifest
) -> PlannedTrial:
    plan = plan_training(recipe, ranks=1, manifest=manifest)
    folder = storage.join_url(url, MODELS_FOLDER, plan.model_id[:_ID_DIGITS])
    model = plan.recipe.model.model_copy(update={"url": folder})
    return PlannedTrial(values=values, plan=replace(plan, recipe=plan.recipe.model_copy(update={"model": model})))


def _changed(document: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`document` with other values put in, by their whole keys."""
    changed = _copied(document)
    for key, value in values.items():
        table = changed
        *tables, last = key.split(".")
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    return changed


def _copied(table: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in table.items()}


def group_trials(trials: Sequence[PlannedTrial], *, most: int) -> Iterator[list[PlannedTrial]]:
    """The trials in groups that can be trained together, of up to `most`; one that can be trained only alone is a group."""
    from finetune.stacks import stack_key

    groups = dict[Any, list[PlannedTrial]]()
    for number, trial in enumerate(trials):
        recipe = trial.plan.recipe
        key = stack_key(recipe.training)
        shape = repr(recipe.model.model_dump(exclude={"url"}))
        groups.setdefault((shape, key) if key is not None and is_dense(trial) else number, []).append(trial)
    for group in groups.values():
        for start in range(0, len(group), most):
            yield group[start : start + most]


def is_dense(trial: PlannedTrial) -> bool:
    """Whether the network of a trial is dense layers alone, without dropout."""
    model = trial.plan.recipe.model
    return model.name in ("softmax_head", "mnist_mlp", "mlp_head") and not model.dropout
