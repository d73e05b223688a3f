"""The models of a sweep: every setting with every seed, each checked and given its identity before any training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featurize import storage
from featurize.errors import UsageError
from featurize.recipes.recipe import FinetuneRecipe, Recipe
from featurize.recipes.sweep_section import SweepSettings, ValueRange
from featurize.recipes.toml_settings import check_settings
from featurize.shortening import some_lines
from featurize.tables.manifests import FeaturesManifest
from finetune.rows.row_query import read_selected
from finetune.sweeps.folder import MODELS_FOLDER
from finetune.sweeps.search import Search, Values, count_settings, start_search
from finetune.training.plan import TrainingPlan, plan_training

_ID_DIGITS = 16  # digits of the model's identity in the name of its folder


@dataclass(frozen=True)
class PlannedTrial:
    """A model to be trained.

    Attributes:
        values: Values of the swept keys.
        plan: Its training plan; `recipe.model.url` is the model's folder in the sweep.
    """

    values: Values
    plan: TrainingPlan

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.plan.recipe.training.seed


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep that has not begun.

    Attributes:
        recipe: The recipe of every trial, without its own values and seed.
        manifest: The manifest of the feature set, of all its columns.
        document: The recipe's sections that determine the training, as written.
        origin: The recipe's name in errors.
        most_models: Largest number of models that the sweep can have.
    """

    url: str
    settings: SweepSettings
    recipe: FinetuneRecipe
    manifest: FeaturesManifest
    document: dict[str, Any]
    origin: str
    most_models: int

    def search(self) -> Search:
        """A new search for this sweep."""
        return start_search(self.settings, epochs=self.recipe.training.epochs)

    def plan_trials(self, settings: Sequence[Values]) -> list[PlannedTrial]:
        """The trials of `settings`, each with every seed.

        Raises:
            UsageError: A setting is wrong; of many, the first few are named.
        """
        trials, faults = list[PlannedTrial](), list[str]()
        for values in settings:
            try:
                trials += [self._plan_trial(values, seed) for seed in self.seeds]
            except UsageError as error:
                faults.append(str(error))
        if faults:
            raise UsageError("\n".join(some_lines(faults, 3, indent="", things="settings")))
        return trials

    @property
    def seeds(self) -> list[int]:
        """The seeds with which every setting is trained."""
        return self.settings.seeds_from(self.recipe.training.seed)

    def _plan_trial(self, values: Values, seed: int) -> PlannedTrial:
        changed = _changed(self.document, {**values, "training.seed": seed})
        recipe = check_settings(FinetuneRecipe, changed, origin=f"{self.origin} with {in_words(values)}")
        manifest = self.manifest.of_column(recipe.features.column, recipe.features.url)
        plan = plan_training(recipe, ranks=1, manifest=manifest)
        folder = storage.join_url(self.url, MODELS_FOLDER, plan.model_id[:_ID_DIGITS])
        model = plan.recipe.model.model_copy(update={"url": folder})
        own = replace(plan, recipe=plan.recipe.model_copy(update={"model": model}))
        return PlannedTrial(values=values, plan=own)


def plan_sweep(recipe: Recipe, *, origin: str) -> SweepPlan:
    """The sweep that `recipe` describes. All that is known of its settings is checked before anything is trained.

    Args:
        recipe: A recipe with a `[sweep]` section.
        origin: The recipe's name in errors.

    Raises:
        UsageError: A section is missing, a setting is wrong (of many, the first few are named), or there is no feature set.
    """
    if recipe.sweep is None or recipe.features is None or recipe.model is None:
        missing = [f"[{name}]" for name in ("features", "model", "sweep") if getattr(recipe, name) is None]
        raise UsageError(f"{origin}: the section{'s' if len(missing) > 1 else ''} {', '.join(missing)} is missing.")
    sweep = recipe.sweep
    document = recipe.model_dump(include={"features", "model", "training", "registry"}, exclude_unset=True)
    base = check_settings(FinetuneRecipe, document, origin=origin)
    n_settings = count_settings(sweep, epochs=base.training.epochs)
    plan = SweepPlan(
        url=storage.absolute_url(sweep.url),
        settings=sweep,
        recipe=base,
        manifest=read_selected(recipe.features, all_columns=True),
        document=document,
        origin=origin,
        most_models=n_settings * len(sweep.seeds_from(base.training.seed)),
    )
    plan.plan_trials(_each_value(sweep) if sweep.search == "bayesian" else next(plan.search()))
    return plan


def _each_value(sweep: SweepSettings) -> list[Values]:
    """Settings that cover every value and both ends of every range, as it is not known yet which will be tried."""
    ends = {
        key: [each.low, each.high] if isinstance(each, ValueRange) else each
        for key, each in sweep.values_by_key().items()
    }
    longest = max(len(each) for each in ends.values())
    return [{key: each[min(number, len(each) - 1)] for key, each in ends.items()} for number in range(longest)]


def in_words(values: Values) -> str:
    """A setting in words: ``training.learning_rate = 0.1, training.l2 = 0``."""
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _changed(document: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`document` with other values, given by their whole keys."""
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
    """The trials in groups of up to `most` that can be trained together; a trial that must be trained alone is a group."""
    from finetune.sweeps.stacks import stack_key

    groups = dict[Any, list[PlannedTrial]]()
    for number, trial in enumerate(trials):
        recipe = trial.plan.recipe
        key = stack_key(recipe.training)
        shape = repr((recipe.features.column, recipe.model.model_dump(exclude={"url"})))
        groups.setdefault((shape, key) if key is not None and is_dense(trial) else number, []).append(trial)
    for group in sorted(groups.values(), key=lambda trials: str(trials[0].plan.manifest.column)):  # each is read once
        for start in range(0, len(group), most):
            yield group[start : start + most]


def is_dense(trial: PlannedTrial) -> bool:
    """Whether the network of a trial consists of dense layers only, without dropout."""
    model = trial.plan.recipe.model
    return model.name in ("softmax_head", "mnist_mlp", "mlp_head") and not model.dropout
