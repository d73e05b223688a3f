"""Training as a whole: check everything first, train on however many ranks, publish the model."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.claims import CLAIM_NAME, Claim, claim_output
from featurize.digests import settings_digest
from featurize.errors import FirnError, UsageError
from featurize.manifests import FeaturesManifest, library_versions, read_features_manifest, utc_now
from featurize.recipe import FinetuneRecipe
from featurize.training_settings import METRICS, TrainingSettings
from finetune.agreement import raise_together
from finetune.checkpoints import CHECKPOINT_NAME, read_checkpoint, remove_checkpoint, write_checkpoint
from finetune.communicator import Communicator
from finetune.event_files import EVENTS_FOLDER, event_files, remove_event_files
from finetune.feature_statistics import Statistics, collect_statistics, needs_statistics
from finetune.fit import Entry, EpochReport, FitResult, TrainingState, fit
from finetune.loader import Data, cache_of, open_split
from finetune.model_folder import ModelCard, read_model_card, refer_to_features, save_model
from finetune.models import build_model, model_faults
from finetune.own_models import source_digest
from finetune.signals import STOP_NAME, forget_stop

if TYPE_CHECKING:
    import keras

_MODEL_CODE_VERSION = 2  # raised when the same settings come to give another model
_NO_SETTINGS_OF_RESULTS = {"batch_size", "timeout_s", "cache", "cache_gb"}
_LEFT_BY_A_TRAINING = (CLAIM_NAME, CHECKPOINT_NAME, EVENTS_FOLDER + "/", STOP_NAME, "model.", "last.")


@dataclass(frozen=True)
class TrainingPlan:
    """A training that has been checked and not begun; the same on every rank."""

    recipe: FinetuneRecipe
    manifest: FeaturesManifest
    ranks: int
    model_id: str


def plan_training(recipe: FinetuneRecipe, *, ranks: int) -> TrainingPlan:
    """Reads the manifest of the feature set and checks that a model can be trained on it.

    Raises:
        UsageError: there is no feature set, or nothing to learn from it.
    """
    recipe = _with_absolute_urls(recipe)
    manifest = read_features_manifest(recipe.features.url)
    present = [label for label, rows in manifest.rows.get("train", {}).items() if rows]
    if len(present) < 2:
        found = f"only {present[0]}" if present else "none"
        raise UsageError(f"{recipe.features.url}: two classes at least must have training rows. Got {found}.")
    _check_fit(recipe, manifest)
    cache = cache_of(recipe.training, manifest)
    unused = _NO_SETTINGS_OF_RESULTS | ({"shuffle_rows"} if cache == "memory" else set())
    settings = {
        "code": _MODEL_CODE_VERSION,
        "features": manifest.identity,
        "content": manifest.content_digest,
        "model": recipe.model.model_dump(exclude={"url"}),
        "own_function": source_digest(recipe.model.name) if recipe.model.is_own_function else None,
        "training": recipe.training.model_dump(exclude=unused),
        "cache": cache,
        "files": [file.path for file in manifest.files if file.split == "train"] if cache == "stream" else None,
        "global_batch_size": recipe.training.batch_size * ranks,
    }
    return TrainingPlan(recipe=recipe, manifest=manifest, ranks=ranks, model_id=settings_digest(settings))


def _with_absolute_urls(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """`recipe` as it means the same in any working directory: ranks on Spark have their own."""
    features = recipe.features.model_copy(update={"url": storage.absolute_url(recipe.features.url)})
    model = recipe.model.model_copy(update={"url": storage.absolute_url(recipe.model.url)})
    return recipe.model_copy(update={"features": features, "model": model})


def find_trained(plan: TrainingPlan, *, overwrite: bool = False) -> ModelCard | None:
    """The model of this plan, if it has been trained already.

    Args:
        overwrite: a model that is there, this or another, is to be replaced.

    Raises:
        UsageError: something else is where it should go.
    """
    url = plan.recipe.model.url
    card = read_model_card(url)
    if card is not None and overwrite:
        return None
    if card is not None and card.model_id != plan.model_id:
        raise UsageError(
            f"{url} holds another model, {card.model_id[:16]} of {card.created_at}. "
            "Write to another `model.url`, or replace it with --overwrite."
        )
    if card is None and storage.exists(url) and (not storage.is_folder(url) or _foreign_files(url)):
        raise UsageError(f"{url} is not empty and holds no model. Write to another `model.url`.")
    return card


def train(
    plan: TrainingPlan,
    ranks: Communicator,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_epoch: EpochReport | None = None,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> ModelCard | None:
    """Trains the model of `plan` and publishes it. Every rank calls this; rank 0 writes, and returns the card.

    Args:
        overwrite: replace another model that is there.
        resume: go on from the checkpoint, if this very training has left one.
        on_epoch: called after each epoch with its entry in the history.
        is_asked_to_stop: asked after each epoch.

    Raises:
        JobError: as `fit`, or another job is writing to the same place.
    """
    url = plan.recipe.model.url
    with ExitStack() as held:
        claim: Claim | None = None
        inputs: _Inputs | None = None
        error: FirnError | None = None
        try:
            if ranks.rank == 0:
                held.enter_context(storage.no_empty_folder(url))
                claim = held.enter_context(claim_output(url))
                find_trained(plan, overwrite=overwrite)  # again: another job may have published meanwhile
                forget_stop(url)
            inputs = _read_inputs(plan, resume=resume)
        except FirnError as caught:
            error = caught
        raise_together(error, ranks)
        if inputs is None:  # cannot be: the line above has raised
            return None
        if claim is not None and inputs.state is None:
            remove_checkpoint(url)
            remove_event_files(url)
        report = on_epoch
        if claim is not None:
            write_events = held.enter_context(event_files(url))
            report = _both(write_events, on_epoch)
        network, result = _fit(plan, inputs, ranks, report, is_asked_to_stop)
        if claim is None:
            return None
        claim.verify()
        _remove_evaluations(url)
        card = save_model(url, network, last_weights=result.last_weights, **_card_fields(plan, inputs, ranks, result))
        _save_history_plot(url, card)
        remove_checkpoint(url)
        return card


@dataclass(frozen=True)
class _Inputs:
    """What every rank reads before it trains."""

    train: Data
    validation: Data
    statistics: Statistics | None
    state: TrainingState | None


def _read_inputs(plan: TrainingPlan, *, resume: bool) -> _Inputs:
    recipe, manifest = plan.recipe, plan.manifest
    train_data, validation_data = (
        open_split(recipe.features.url, manifest, split, recipe.training) for split in ("train", "validation")
    )
    statistics = None
    if needs_statistics(recipe.model, manifest.feature_dtype):
        statistics = collect_statistics((features for features, _ in train_data.slices()), recipe.model)
    state = read_checkpoint(recipe.model.url, plan.model_id) if resume else None
    return _Inputs(train_data, validation_data, statistics, state)


def _fit(
    plan: TrainingPlan,
    inputs: _Inputs,
    ranks: Communicator,
    on_epoch: EpochReport | None,
    is_asked_to_stop: Callable[[], bool],
) -> tuple["keras.Model", FitResult]:
    """The network of the best epoch, and how it was come to."""
    manifest, recipe = plan.manifest, plan.recipe
    network = build_model(
        recipe.model,
        feature_shape=manifest.feature_shape,
        feature_dtype=manifest.feature_dtype,
        n_classes=len(manifest.classes),
        seed=recipe.training.seed,
        statistics=inputs.statistics,
    )
    result = fit(
        network,
        inputs.train,
        inputs.validation,
        recipe.training,
        class_weights=weights_of_classes(recipe.training, manifest),
        ranks=ranks,
        state=inputs.state,
        on_epoch=on_epoch,
        keep=lambda state: write_checkpoint(recipe.model.url, plan.model_id, state),
        is_asked_to_stop=is_asked_to_stop,
    )
    return result.model, result


def _card_fields(plan: TrainingPlan, inputs: _Inputs, ranks: Communicator, result: FitResult) -> dict[str, Any]:
    """The fields of the card, without the digests of the networks."""
    manifest, recipe = plan.manifest, plan.recipe
    best = result.history[result.best_epoch - 1]
    return {
        "model_id": plan.model_id,
        "features": refer_to_features(recipe.features.url, manifest),
        "classes": manifest.classes,
        "recipe": recipe.model_dump(),
        "seed": recipe.training.seed,
        "ranks": ranks.size,
        "global_batch_size": recipe.training.batch_size * ranks.size,
        "rows": {"train": inputs.train.rows, "validation": inputs.validation.rows},
        "metrics": {key: value for key, value in best.items() if key in METRICS},
        "best_epoch": result.best_epoch,
        "history": result.history,
        "rows_per_second": round(result.rows_per_second, 1),
        "seconds_of_ranks": result.seconds_of_ranks,
        "is_stopped_early": result.is_stopped_early,
        "cache": cache_of(recipe.training, manifest),
        "created_at": utc_now(),
        "versions": library_versions(),
    }


def weights_of_classes(settings: TrainingSettings, manifest: FeaturesManifest) -> list[float] | None:
    """The weight of each class by index; None where all weigh the same.

    `balanced`: training rows / (classes with rows x training rows of the class), so that all classes weigh the same together and
    the mean over the rows is 1. Source: G. King, L. Zeng: Logistic Regression in Rare Events Data, 2001, as in scikit-learn.
    """
    given = settings.class_weights
    if given is None:
        return None
    if given != "balanced":
        return [float(given.get(label, 1.0)) for label in manifest.classes]
    rows = manifest.rows["train"]
    present = [count for count in rows.values() if count]
    total = sum(present)
    return [total / (len(present) * rows[label]) if rows.get(label) else 1.0 for label in manifest.classes]


def _check_fit(recipe: FinetuneRecipe, manifest: FeaturesManifest) -> None:
    """Checks that what the recipe asks for goes with the feature set.

    Raises:
        UsageError: naming every fault.
    """
    training = recipe.training
    faults = model_faults(recipe.model, feature_shape=manifest.feature_shape, feature_dtype=manifest.feature_dtype)
    if manifest.feature_dtype != "uint8" and training.augmentation is not None:
        faults.append("training.augmentation is for images (the backbone `pixels`)")
    if isinstance(training.class_weights, dict):
        unknown = sorted(set(training.class_weights) - set(manifest.classes))
        faults += [f"training.class_weights: there is no class {label!r}" for label in unknown]
        faults += [
            f"training.class_weights: {label!r} must weigh 0 or more. Got {weight:g}"
            for label, weight in training.class_weights.items()
            if weight < 0
        ]
    stopping = training.early_stopping
    if stopping is not None and stopping.metric.startswith("validation") and not manifest.split_rows("validation"):
        faults.append(f"training.early_stopping.metric: there are no validation rows for {stopping.metric}")
    if faults:
        lines = "\n".join(f"  - {fault.rstrip('.')}." for fault in faults)
        raise UsageError(f"{recipe.features.url} and the recipe do not go together:\n{lines}")


def _both(first: EpochReport, second: EpochReport | None) -> EpochReport:
    def report(entry: Entry) -> None:
        first(entry)
        if second is not None:
            second(entry)

    return report


def _remove_evaluations(url: str) -> None:
    """Removes what was evaluated of the model that is being replaced."""
    for file in storage.list_files(url):
        if file.rsplit("/", 1)[1].startswith(("evaluation-", "confusion-")):
            storage.remove(file)


def _save_history_plot(url: str, card: ModelCard) -> None:
    from finetune.plots import plot_history, render_png

    figure = plot_history(card.history, title=f"{card.recipe['model']['name']}: training", best_epoch=card.best_epoch)
    storage.write_bytes(storage.join_url(url, "history.png"), render_png(figure))


def _foreign_files(url: str) -> bool:
    """Whether a folder without a model holds more than an interrupted training leaves."""
    prefix = storage.absolute_url(url) + "/"
    return any(not file.removeprefix(prefix).startswith(_LEFT_BY_A_TRAINING) for file in storage.list_files(url))
