"""A model's values for MLflow: settings as flat parameters, scores as named metrics, the recipe as TOML."""

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict

from featurize import storage
from featurize.errors import FirnError, JobError
from featurize.recipes.recipe import SPLITS
from featurize.storage.inner_path import InnerName, NamedUrl
from featurize.tables.documents import read_document
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import read_features_manifest
from finetune.models.folder import ModelCard

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_\-]+")
_MAX_PARAMETER = 6000  # characters; source: mlflow.utils.validation.MAX_PARAM_VAL_LENGTH
_SCORES = ("accuracy", "top5_accuracy", "precision", "recall", "f1", "log_loss")
_SHOWN_OF_BACKBONE = ("name", "layer", "precision")
_EVALUATIONS = tuple(f"evaluation-{split}.json" for split in SPLITS)
SCHEMA_VERSION = 1
"""The schema version of `evaluation-<split>.json`."""


class EvaluationRecord(BaseModel):
    """`evaluation-<split>.json`: the fields that others rely on. Its `files` are not among them: nobody opens those."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    model_id: InnerName
    features: NamedUrl
    split: Literal["train", "validation", "test"]
    accuracy: float | None = None
    top5_accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    log_loss: float | None = None


def flat_settings(card: ModelCard) -> dict[str, str]:
    """A model's recipe and training data as MLflow parameters: text by dotted keys, complete."""
    features = card.features
    facts = {
        "features.identity": features.identity,
        "features.content_digest": features.content_digest,
        "features.preparation_id": features.preparation_id,
        **{f"backbone.{key}": features.backbone.get(key) for key in _SHOWN_OF_BACKBONE if key in features.backbone},
        "ranks": card.ranks,
        "global_batch_size": card.global_batch_size,
        "classes": len(card.classes),
        **{f"rows.{split}": rows for split, rows in card.rows.items()},
    }
    flat = {**dict(_flatten(card.recipe, "")), **facts}
    return {key: _as_text(value)[:_MAX_PARAMETER] for key, value in flat.items()}


def summary_metrics(card: ModelCard) -> dict[str, float]:
    """The scores of the best epoch and the cost of the training; the scores of every epoch are a history."""
    found = {f"best_{key}": float(value) for key, value in card.metrics.items()}
    return {
        **found,
        "best_epoch": float(card.best_epoch),
        "epochs": float(len(card.history)),
        "training_rows_per_second": card.rows_per_second,
    }


def evaluation_prefix(card: ModelCard, evaluation: Mapping[str, Any]) -> str:
    """A prefix for evaluations on other features than the model's own, to tell them from others of their split; else empty."""
    url = str(evaluation["features"])
    return "" if url == card.features.url else f"features-{sha256(url.encode()).hexdigest()[:8]}/"


def evaluation_metrics(card: ModelCard, evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The scores of `finetune evaluate`, such as `test/accuracy`; `validation_accuracy` comes from the epochs."""
    name = evaluation_prefix(card, evaluation) + str(evaluation["split"])
    return {f"{name}/{key}": float(evaluation[key]) for key in _SCORES if evaluation.get(key) is not None}


def recipe_toml(card: ModelCard) -> str:
    """A model's recipe as TOML; with the sections on images and backbone, if the features' manifest has them."""
    sections: dict[str, Any] = {}
    try:
        manifest: FeaturesManifest | None = read_features_manifest(card.features.url).made_by(
            card.features.preparation_id
        )
    except (FirnError, OSError):  # without the features, the sections on model and training remain
        manifest = None
    if manifest is not None:
        sections |= {key: manifest.recipe[key] for key in ("images", "backbone") if key in manifest.recipe}
    sections |= {key: value for key, value in card.recipe.items() if value is not None}
    return f"# Model {card.model_id}, {card.created_at}\n\n{tomli_w.dumps(_without_none(sections))}"


def read_evaluations(model_url: str) -> dict[str, dict[str, Any]]:
    """The evaluations in a model's folder, by file name.

    Raises:
        JobError: One is damaged, has another schema version, or is of another split than its name says.
    """
    found = {}
    for name in _EVALUATIONS:
        url = storage.join_url(model_url, name)
        record = read_document(url, EvaluationRecord, version=SCHEMA_VERSION)
        if record is not None and name != f"evaluation-{record.split}.json":
            raise JobError(f"{url} is of the split {record.split}.")
        if record is not None:
            found[name] = record.model_dump()
    return found


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key; a table whose keys are data, such as class weights, as one value."""
    if isinstance(value, Mapping) and value and all(_PLAIN_KEY.fullmatch(str(key)) for key in value):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif value is not None:
        yield prefix, value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table without the keys that have no value, which TOML cannot express; nested tables alike."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }
