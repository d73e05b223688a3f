"""Training as a whole: check everything first, train on however many ranks, publish the model."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from featurize import storage
from featurize.claims import Claim, claim_output
from featurize.digests import settings_digest
from featurize.errors import FirnError, UsageError
from featurize.manifests import FeaturesManifest, library_versions, read_features_manifest, utc_now
from featurize.recipe import FinetuneRecipe
from finetune.fit import Communicator, EpochReport, fit, raise_together
from finetune.loader import SplitData, read_split
from finetune.model_folder import ModelCard, read_model_card, refer_to_features, save_model
from finetune.models import build_model

_MODEL_CODE_VERSION = 1  # raised when the same settings come to give another model


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
    settings = {
        "code": _MODEL_CODE_VERSION,
        "features": manifest.identity,
        "content": manifest.content_digest,
        "model": recipe.model.model_dump(exclude={"url"}),
        "training": recipe.training.model_dump(exclude={"batch_size"}),
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
    plan: TrainingPlan, ranks: Communicator, *, overwrite: bool = False, on_epoch: EpochReport | None = None
) -> ModelCard | None:
    """Trains the model of `plan` and publishes it. Every rank calls this; rank 0 writes, and returns the card.

    Args:
        overwrite: replace another model that is there.
        on_epoch: called after each epoch with its entry in the history.

    Raises:
        JobError: as `fit`, or another job is writing to the same place.
    """
    url = plan.recipe.model.url
    with ExitStack() as held:
        claim: Claim | None = None
        data: dict[str, SplitData] = {}
        error: FirnError | None = None
        try:
            if ranks.rank == 0:
                held.enter_context(storage.no_empty_folder(url))
                claim = held.enter_context(claim_output(url))
                find_trained(plan, overwrite=overwrite)  # again: another job may have published meanwhile
            for split in ("train", "validation"):
                data[split] = read_split(plan.recipe.features.url, plan.manifest, split)
        except FirnError as caught:
            error = caught
        raise_together(error, ranks)
        network, fields = _fit(plan, data["train"], data["validation"], ranks, on_epoch)
        if claim is None:
            return None
        claim.verify()
        _remove_evaluations(url)
        card = save_model(url, network, **fields)
        _save_history_plot(url, card)
        return card


def _fit(
    plan: TrainingPlan,
    train_data: SplitData,
    validation_data: SplitData,
    ranks: Communicator,
    on_epoch: EpochReport | None,
) -> tuple[Any, dict[str, Any]]:
    """The trained network and the fields of its card."""
    manifest, recipe = plan.manifest, plan.recipe
    network = build_model(
        recipe.model,
        feature_shape=manifest.feature_shape,
        feature_dtype=manifest.feature_dtype,
        n_classes=len(manifest.classes),
        seed=recipe.training.seed,
    )
    result = fit(network, train_data, validation_data, recipe.training, ranks=ranks, on_epoch=on_epoch)
    best = result.history[result.best_epoch - 1]
    return result.model, {
        "model_id": plan.model_id,
        "features": refer_to_features(recipe.features.url, manifest),
        "classes": manifest.classes,
        "recipe": recipe.model_dump(),
        "seed": recipe.training.seed,
        "ranks": ranks.size,
        "global_batch_size": recipe.training.batch_size * ranks.size,
        "rows": {"train": train_data.rows, "validation": validation_data.rows},
        "metrics": {key: value for key, value in best.items() if key not in ("epoch", "seconds")},
        "best_epoch": result.best_epoch,
        "history": result.history,
        "rows_per_second": round(result.rows_per_second, 1),
        "created_at": utc_now(),
        "versions": library_versions(),
    }


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
    return any(not file.removeprefix(prefix).startswith(("_claim.json", "model.")) for file in storage.list_files(url))
