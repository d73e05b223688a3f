"""Training as a whole: read everything, train on any number of ranks, publish the model."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurize import storage
from featurize.errors import FirnError, SharedError
from featurize.memory import peak_memory_bytes
from featurize.recipes.training_section import METRICS
from featurize.storage.claims import Claim, claim_output
from featurize.tables.manifests import library_versions, utc_now
from finetune.models.folder import ModelCard, refer_to_features, save_model
from finetune.networks.build import build_model
from finetune.networks.input_statistics import collect_statistics, needs_statistics
from finetune.networks.unfrozen import build_unfrozen
from finetune.ranks.communicator import Communicator
from finetune.ranks.consensus import gather_rows, raise_together
from finetune.rows.loader import Data, cache_of, open_split
from finetune.training.checkpoints import read_checkpoint, remove_checkpoint, write_checkpoint
from finetune.training.loop import EpochReport, FitResult, fit
from finetune.training.plan import TrainingPlan, find_trained, identity_of_rows, weights_of_classes
from finetune.training.state import Entry, TrainingState
from finetune.training.tensorboard import event_files, remove_event_files

if TYPE_CHECKING:
    import keras


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
        overwrite: replaces another model that is there.
        resume: resumes from the checkpoint, if this training has left one.
        on_epoch: called after each epoch with its entry in the history.
        is_asked_to_stop: called after each epoch; true ends the training.

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
            inputs = _read_inputs(plan, resume=resume)
        except FirnError as caught:
            error = caught
        raise_together(error, ranks)
        _check_same_plan(plan, ranks)
        if inputs is None:  # cannot be: the line above has raised
            return None
        if claim is not None and inputs.state is None:
            remove_checkpoint(url)
            remove_event_files(url)
        report = on_epoch
        if claim is not None:
            write_events = held.enter_context(event_files(url))
            report = _both(write_events, on_epoch)
        result = _fit(plan, inputs, ranks, report, is_asked_to_stop)
        memory = _memory_of_ranks(inputs, ranks, is_stream=cache_of(plan.recipe.training, plan.manifest) == "stream")
        if claim is None:
            return None
        claim.verify()
        card = publish(
            plan,
            result,
            train_rows=inputs.train.rows,
            validation_rows=inputs.validation.rows,
            memory_of_ranks=memory,
        )
        _save_history_plot(url, card)
        remove_checkpoint(url)
        return card


def publish(
    plan: TrainingPlan,
    result: FitResult,
    *,
    train_rows: int,
    validation_rows: int,
    memory_of_ranks: Sequence[dict[str, int]] = (),
) -> ModelCard:
    """Writes the model folder of `plan`; the caller holds the claim on it.

    Args:
        memory_of_ranks: as in `ModelCard`; left out where many models were trained in one process.
    """
    manifest, recipe, url = plan.manifest, plan.recipe, plan.recipe.model.url
    best = result.history[result.best_epoch - 1]
    _remove_evaluations(url)
    return save_model(
        url,
        result.model,
        last_weights=result.last_weights,
        model_id=plan.model_id,
        features=refer_to_features(recipe.features.url, manifest),
        classes=manifest.classes,
        recipe=recipe.model_dump(),
        seed=recipe.training.seed,
        ranks=plan.ranks,
        global_batch_size=recipe.training.batch_size * plan.ranks,
        rows={"train": train_rows, "validation": validation_rows},
        read_as=identity_of_rows(manifest),
        metrics={key: value for key, value in best.items() if key in METRICS},
        best_epoch=result.best_epoch,
        history=result.history,
        rows_per_second=round(result.rows_per_second, 1),
        seconds_of_ranks=result.seconds_of_ranks,
        memory_of_ranks=list(memory_of_ranks),
        is_stopped_early=result.is_stopped_early,
        cache=cache_of(recipe.training, manifest),
        created_at=utc_now(),
        versions=library_versions(),
    )


def _check_same_plan(plan: TrainingPlan, ranks: Communicator) -> None:
    """Checks that all ranks have selected the same rows; under horovodrun each runs the query and reads the corrections.

    Raises:
        SharedError: something was corrected or predicted meanwhile, or the query selects other rows each time.
    """
    if ranks.size > 1 and plan.manifest.edits is not None:
        numbers = [float(int(part, 16)) for part in (plan.model_id[:8], plan.model_id[8:16])]
        if any(row != numbers for row in gather_rows(numbers, ranks)):
            raise SharedError(
                "the ranks have selected different rows; train again while no labels or predictions are being written."
            )


@dataclass(frozen=True)
class _Inputs:
    """The inputs that every rank reads before it trains."""

    train: Data
    validation: Data
    state: TrainingState | None
    network: "keras.Model"  # untrained


def _read_inputs(plan: TrainingPlan, *, resume: bool) -> _Inputs:
    recipe, manifest = plan.recipe, plan.manifest
    train_data, validation_data = (
        open_split(recipe.features.url, manifest, split, recipe.training) for split in ("train", "validation")
    )
    state = read_checkpoint(recipe.model.url, plan.model_id) if resume else None
    return _Inputs(train_data, validation_data, state, build_network(plan, train_data))


def build_network(plan: TrainingPlan, train_data: Data) -> "keras.Model":
    """The untrained network of `plan`, with the statistics of its training rows if it needs them."""
    manifest, settings = plan.manifest, plan.recipe.model
    if plan.head is not None and settings.unfreeze_from is not None:
        return build_unfrozen(plan.head, unfreeze_from=settings.unfreeze_from)
    statistics = None
    if needs_statistics(settings, manifest.feature_dtype):
        statistics = collect_statistics((features for features, _ in train_data.slices()), settings)
    return build_model(
        settings,
        feature_shape=manifest.feature_shape,
        feature_dtype=manifest.feature_dtype,
        n_classes=len(manifest.classes),
        seed=plan.recipe.training.seed,
        statistics=statistics,
    )


def _fit(
    plan: TrainingPlan,
    inputs: _Inputs,
    ranks: Communicator,
    on_epoch: EpochReport | None,
    is_asked_to_stop: Callable[[], bool],
) -> FitResult:
    recipe = plan.recipe
    return fit(
        inputs.network,
        inputs.train,
        inputs.validation,
        recipe.training,
        class_weights=weights_of_classes(recipe.training, plan.manifest),
        ranks=ranks,
        state=inputs.state,
        on_epoch=on_epoch,
        keep=lambda state: write_checkpoint(recipe.model.url, plan.model_id, state),
        is_asked_to_stop=is_asked_to_stop,
    )


def _memory_of_ranks(inputs: _Inputs, ranks: Communicator, *, is_stream: bool) -> list[dict[str, int]]:
    """The memory of the features in each rank and the peak of its process, as in `ModelCard.memory_of_ranks`."""
    of_splits = [data.memory_bytes(rank=ranks.rank, size=ranks.size) for data in (inputs.train, inputs.validation)]
    features = of_splits[0] if is_stream else sum(of_splits)  # validation rows are streamed after the training rows
    rows = gather_rows([float(features), float(peak_memory_bytes())], ranks)
    return [{"feature_bytes": int(features), "peak_bytes": int(peak)} for features, peak in rows]


def _both(first: EpochReport, second: EpochReport | None) -> EpochReport:
    def report(entry: Entry) -> None:
        first(entry)
        if second is not None:
            second(entry)

    return report


def _remove_evaluations(url: str) -> None:
    """Removes the evaluations of the model that is being replaced."""
    for file in storage.list_files(url):
        if file.rsplit("/", 1)[1].startswith(("evaluation-", "confusion-")):
            storage.remove(file)


def _save_history_plot(url: str, card: ModelCard) -> None:
    from finetune.scores.figures import plot_history, render_png

    figure = plot_history(card.history, title=f"{card.recipe['model']['name']}: training", best_epoch=card.best_epoch)
    storage.write_bytes(storage.join_url(url, "history.png"), render_png(figure))
