"""Small trained models and sweeps for the tests of reports, with images that can be read."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurize import storage
from featurize.digests import settings_digest
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FeaturesSettings, FinetuneRecipe
from featurize.recipes.training_section import TrainingSettings
from featurize.tables.manifests import utc_now
from finetune.models.folder import ModelCard
from finetune.ranks.communicator import SingleRank
from finetune.sweeps.folder import CARD_NAME, MODELS_FOLDER, SweepCard, Trial
from finetune.training.plan import plan_training
from finetune.training.train import train
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.tables.publishing import write_manifest

HOSTILE = '<script>alert("class")</script>'
ODD_CLASSES = (
    HOSTILE,
    "{{ 7 * 7 }}",
    "bee, wild & 'tame'",
    "grün",
    "a_class_with_a_name_that_is_much_longer_than_others",
)


def class_names(n_classes: int) -> list[str]:
    """Names that try the page: hostile, odd and long ones among plain ones."""
    plain = [f"{number:03d}.kind_of_thing" for number in range(n_classes)]
    return [*ODD_CLASSES[:n_classes], *plain[len(ODD_CLASSES) :]][:n_classes]


def make_features(folder: Path, *, n_classes: int, rows: int, spread: float = 3.0, pictures: bool = True) -> Path:
    """A feature set `set` of classes that overlap; the images it names lie in `folder`, which must be the working directory."""
    features, label_index = make_clusters(rows, dim=max(9, n_classes), n_classes=n_classes, spread=spread)
    manifest = write_feature_set(folder / "set", features, label_index, classes=class_names(n_classes))
    if pictures:
        source = {"source": f"file://{folder}/photos", "layout": "folders"}
        write_manifest(
            str(folder / "set"), manifest.model_copy(update={"settings": {**manifest.settings, "source": source}})
        )
        write_pictures(folder / "photos", label_index)
    return folder / "set"


def write_pictures(folder: Path, label_index: NDArray[np.int32]) -> None:
    """A picture for each row, of a colour for each class; tall and wide ones in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, label in enumerate(label_index):
        size = (300, 120) if row % 2 else (80, 200)
        colour = tuple(np.random.default_rng(int(label)).integers(40, 220, 3).tolist())
        Image.new("RGB", size, colour).save(folder / f"{row:05d}.png")


def train_model(features: Path, model: Path, **training: Any) -> ModelCard:
    """A softmax head on `features`."""
    recipe = FinetuneRecipe(
        features=FeaturesSettings(url=str(features)),
        model=ModelSettings(url=str(model)),
        training=TrainingSettings(**training),
    )
    card = train(plan_training(recipe, ranks=1), SingleRank())
    if card is None:
        raise RuntimeError("nothing was trained")
    return card


def train_sweep(
    features: Path,
    folder: Path,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    failed: Sequence[dict[str, Any]] = (),
    epochs: int = 3,
    **values: Sequence[Any],
) -> SweepCard:
    """A model for each combination of `values` and each seed, and the card of the sweep; `failed` are settings without models."""
    keys = [f"training.{name}" for name in values]
    trials = []
    for setting in product(*values.values()):
        for seed in seeds:
            named = dict(zip(values, setting, strict=True))
            url = folder / MODELS_FOLDER / settings_digest({**named, "seed": seed})[:16]
            card = train_model(features, url, epochs=epochs, seed=seed, **named)
            trials.append(
                Trial(
                    values=dict(zip(keys, setting, strict=True)),
                    seed=seed,
                    model_id=card.model_id,
                    url=f"file://{url}",
                    state="done",
                    metrics=card.metrics,
                    epochs=len(card.history),
                    seconds=0.5,
                )
            )
    trials += [
        Trial(
            values=setting, seed=seeds[0], model_id="0" * 64, url="file:///nowhere", state="failed", error="loss is nan"
        )
        for setting in failed
    ]
    sweep = SweepCard(
        recipe=card.recipe,
        features=card.features,
        classes=card.classes,
        keys=keys,
        seeds=list(seeds),
        metric="validation_accuracy",
        trials=trials,
        created_at=utc_now(),
        updated_at=utc_now(),
    )
    storage.write_json(str(folder / CARD_NAME), sweep.model_dump())
    return sweep
