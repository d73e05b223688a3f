"""The plan of a training, checked before anything starts; the same on every rank."""

from dataclasses import dataclass

from featurize import storage
from featurize.digests import settings_digest
from featurize.errors import UsageError
from featurize.recipes.model_section import UNFROZEN
from featurize.recipes.recipe import JOINED, FinetuneRecipe
from featurize.recipes.training_section import TrainingSettings
from featurize.storage.claims import CLAIM_NAME
from featurize.tables.manifests import FeaturesManifest
from finetune.models.folder import ModelCard, read_model_card
from finetune.networks.build import model_faults
from finetune.networks.unfrozen import TrainedHead, find_head
from finetune.networks.user_functions import source_digest
from finetune.rows.loader import cache_of
from finetune.rows.row_query import read_selected
from finetune.training.checkpoints import CHECKPOINT_NAME
from finetune.training.tensorboard import EVENTS_FOLDER

_MODEL_CODE_VERSION = 2  # raised when the same settings give another model than before
_NO_SETTINGS_OF_RESULTS = {"batch_size", "timeout_s", "cache", "cache_gb"}
_LEFT_BY_A_TRAINING = (CLAIM_NAME, CHECKPOINT_NAME, EVENTS_FOLDER + "/", "model.", "last.")


@dataclass(frozen=True)
class TrainingPlan:
    """A training that has been checked and not begun; the same on every rank."""

    recipe: FinetuneRecipe
    manifest: FeaturesManifest
    ranks: int
    model_id: str
    head: TrainedHead | None = None  # where unfreezing starts from


def plan_training(recipe: FinetuneRecipe, *, ranks: int, manifest: FeaturesManifest | None = None) -> TrainingPlan:
    """Reads the manifest of the feature set and checks that a model can be trained on it.

    Args:
        manifest: the manifest of the feature set, with the rows that the recipe selects, if it has been read already.

    Raises:
        UsageError: there is no feature set, its rows cannot be selected as the recipe says, or there is nothing to learn from it.
    """
    recipe = _with_absolute_urls(recipe)
    manifest = manifest or read_selected(recipe.features)
    present = [label for label, rows in manifest.rows.get("train", {}).items() if rows]
    if len(present) < 2:
        found = f"only {present[0]}" if present else "none"
        raise UsageError(f"{recipe.features.url}: two classes at least must have training rows. Got {found}.")
    _check_fit(recipe, manifest)
    head = find_head(recipe.model, manifest) if recipe.model.name == UNFROZEN else None
    cache = cache_of(recipe.training, manifest)
    unused = _NO_SETTINGS_OF_RESULTS | ({"shuffle_rows"} if cache == "memory" else set())
    settings = {
        "code": _MODEL_CODE_VERSION,
        "features": manifest.identity_of_features,
        "content": manifest.content_digest,
        "model": recipe.model.model_dump(exclude={"url", "head"}),
        "head": head.card.model_id if head is not None else None,
        "own_function": source_digest(recipe.model.name) if recipe.model.is_own_function else None,
        "training": recipe.training.model_dump(exclude=unused),
        "cache": cache,
        "files": [file.path for file in manifest.files if file.split == "train"] if cache == "stream" else None,
        "global_batch_size": recipe.training.batch_size * ranks,
        **identity_of_rows(manifest),
    }
    return TrainingPlan(recipe=recipe, manifest=manifest, ranks=ranks, model_id=settings_digest(settings), head=head)


def _with_absolute_urls(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """`recipe` with absolute URLs, as ranks on Spark have their own working directories, and with a folder for an alias."""
    named = {name: getattr(recipe.features, name) for name in ("url", *JOINED)}
    urls = {name: storage.absolute_url(url) for name, url in named.items() if url is not None}
    features = recipe.features.model_copy(update=urls)
    changes = {"url": storage.absolute_url(recipe.model.url)}
    if recipe.model.head is not None:
        from finetune.registry.resolve import resolve_model

        registry = recipe.registry.url if recipe.registry is not None else None
        changes["head"] = storage.absolute_url(resolve_model(recipe.model.head, registry=registry))
    model = recipe.model.model_copy(update=changes)
    return recipe.model_copy(update={"features": features, "model": model})


def identity_of_rows(manifest: FeaturesManifest) -> dict[str, str]:
    """The parts of the model's identity that are in no file of the feature set: corrections and the selection of rows."""
    edits = manifest.edits
    if edits is None:
        return {}
    parts = {"corrections": edits.corrections_digest, "where": edits.where, "selected": edits.selection_digest}
    return {name: part for name, part in parts.items() if part is not None}


def find_trained(plan: TrainingPlan, *, overwrite: bool = False) -> ModelCard | None:
    """The model of this plan, if it has been trained already.

    Args:
        overwrite: whether to replace a model that is there, this or another.

    Raises:
        UsageError: something else is at `model.url`.
    """
    url = plan.recipe.model.url
    card = read_model_card(url)
    if card is not None and overwrite:
        return None
    if card is not None and card.model_id != plan.model_id:
        raise UsageError(
            f"{url} holds another model, {card.model_id[:16]} of {card.created_at}. "
            "Write to another `model.url`, or replace it with `overwrite=True` (--overwrite)."
        )
    if card is None and storage.exists(url) and (not storage.is_folder(url) or _foreign_files(url)):
        raise UsageError(f"{url} is not empty and holds no model. Write to another `model.url`.")
    return card


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
    """Checks that the recipe fits the feature set.

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
        raise UsageError(f"the recipe does not fit the feature set {recipe.features.url}:\n{lines}")


def _foreign_files(url: str) -> bool:
    """Whether a folder without a model holds more than an interrupted training leaves."""
    prefix = storage.absolute_url(url) + "/"
    return any(not file.removeprefix(prefix).startswith(_LEFT_BY_A_TRAINING) for file in storage.list_files(url))
