"""Writes the parts of a run to MLflow. Writing a part again changes nothing."""

import json
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.recipes.recipe import RegistrySettings
from finetune.models.folder import CARD_NAME, ModelCard
from finetune.registry.client import MODEL_ID_TAG
from finetune.registry.pyfunc_saving import save_pyfunc
from finetune.registry.run_values import (
    evaluation_metrics,
    evaluation_prefix,
    flat_settings,
    recipe_toml,
    summary_metrics,
)
from finetune.registry.versions import logged_model_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAKES_TAG = "firn.takes"
MODEL_NAME = "model"  # name of the logged model within its run
PLOT_NAME = "history.png"
_BATCH = 100  # source: mlflow.utils.validation.MAX_PARAMS_TAGS_PER_BATCH
_METRICS_BATCH = 1000  # likewise, MAX_METRICS_PER_BATCH


def write_settings(client: "MlflowClient", run: "Run", card: ModelCard) -> None:
    """Writes the recipe as parameters, and the feature set as a data set."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    missing = [Param(key, value) for key, value in flat_settings(card).items() if key not in run.data.params]
    for start in range(0, len(missing), _BATCH):
        client.log_batch(run.info.run_id, params=missing[start : start + _BATCH])
    features = card.features
    dataset = Dataset(
        name=features.url.rstrip("/").rsplit("/", 1)[1],
        digest=features.identity[:36],
        source_type="firn",
        source=json.dumps({"url": features.url, "identity": features.identity, "content": features.content_digest}),
        profile=json.dumps({"rows": card.rows, "classes": len(card.classes)}),
    )
    if not run.inputs or not run.inputs.dataset_inputs:
        client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def write_history(client: "MlflowClient", run_id: str, card: ModelCard) -> None:
    """Writes the metrics of every epoch. Their time is the model's, so that logging them again adds nothing."""
    from mlflow.entities import Metric

    at = int(datetime.fromisoformat(card.created_at).timestamp() * 1000)
    metrics = [
        Metric(key, float(value), at, int(entry.get("epoch", number)))
        for number, entry in enumerate(card.history, start=1)
        for key, value in entry.items()
        if key != "epoch"
    ]
    metrics += [Metric(key, value, at, 0) for key, value in summary_metrics(card).items()]
    for start in range(0, len(metrics), _METRICS_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_BATCH])


def write_files(client: "MlflowClient", run_id: str, card: ModelCard, url: str) -> None:
    """Writes the recipe, the model's description and the curves as files of the run."""
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        (Path(folder) / "recipe.toml").write_text(recipe_toml(card), encoding="utf-8")
        for name in (CARD_NAME, PLOT_NAME):
            if storage.exists(storage.join_url(url, name)):
                storage.download(storage.join_url(url, name), Path(folder) / name)
        client.log_artifacts(run_id, folder)


def write_network(
    client: "MlflowClient", run: "Run", card: ModelCard, url: str, registry: RegistrySettings
) -> str | None:
    """Writes the model as an MLflow model, unless it is there already; returns a remark for the user, or None."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.entities.logged_model_status import LoggedModelStatus

    if logged_model_of(run) is not None:
        return None
    run_id = str(run.info.run_id)
    made = client.create_logged_model(
        run.info.experiment_id, name=MODEL_NAME, source_run_id=run_id, tags={MODEL_ID_TAG: card.model_id}
    )
    try:
        with tempfile.TemporaryDirectory(prefix="firn-") as temporary:
            folder = Path(temporary) / MODEL_NAME
            ids = {"artifact_path": made.artifact_location, "model_uuid": made.model_id, "model_id": made.model_id}
            missing = save_pyfunc(url, card, folder, with_backbone=registry.backbone, run_id=run_id, **ids)
            client.log_model_artifacts(made.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(made.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=card.best_epoch)])
    client.set_tag(run_id, TAKES_TAG, "features" if missing or not _takes_images(card, registry) else "images")
    return f"the logged model takes features, not images: {missing}" if missing else None


def _takes_images(card: ModelCard, registry: RegistrySettings) -> bool:
    return registry.backbone or card.features.feature_dtype == "uint8"


def files_of_evaluation(url: str, split: str) -> dict[str, str]:
    """The URLs of the files that an evaluation on a split has written to the folder of the model at `url`."""
    names = {"table": f"confusion-{split}.csv", "plot": f"confusion-{split}.png"}
    return {key: storage.join_url(url, name) for key, name in names.items()}


def write_evaluation(
    client: "MlflowClient", run: "Run", card: ModelCard, evaluation: Mapping[str, Any], files: Mapping[str, str]
) -> None:
    """Writes scores and files of an evaluation, unless they are there already.

    Args:
        client: Client of the registry.
        run: The run of the model.
        card: The model's description.
        evaluation: The scores.
        files: URLs of the files, which this process made or `files_of_evaluation` names: they are sent to the registry.
    """
    metrics = evaluation_metrics(card, evaluation)
    if all(run.data.metrics.get(key) == value for key, value in metrics.items()):
        return
    prefix, split = evaluation_prefix(card, evaluation), evaluation["split"]
    if prefix:
        client.set_tag(run.info.run_id, f"firn.{prefix.rstrip('/')}", str(evaluation["features"]))
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        document = {key: value for key, value in evaluation.items() if key != "files"}
        (Path(folder) / f"evaluation-{split}.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
        for file in files.values():
            local = Path(folder) / file.rsplit("/", 1)[1]
            if not local.exists() and storage.exists(file):
                storage.download(file, local)
        client.log_artifacts(run.info.run_id, folder, f"evaluation/{prefix}".rstrip("/"))
    for key, value in metrics.items():
        client.log_metric(run.info.run_id, key, value)
