"""Writes a trained model as a standard MLflow model with everything needed to classify images."""

import json
import logging
import shutil
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import featurize
import finetune
from featurize import storage
from featurize.errors import FirnError
from finetune.models.backbone import prepare_model_backbone
from finetune.models.folder import CARD_NAME, NETWORK_NAME, ModelCard
from finetune.registry.pyfunc_model import (
    BACKBONE_CARD,
    BACKBONE_FOLDER,
    FEATURES,
    IMAGE,
    MODEL_FOLDER,
    SCHEMA_VERSION,
    backbone_file,
)

DATA_FOLDER = "firn"  # inside the folder `data` of the MLflow model
_NEEDED = (
    "mlflow",
    "tensorflow-cpu",
    "tensorflow",
    "keras",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "fsspec",
)


def save_pyfunc(
    model_url: str, card: ModelCard, folder: str | Path, *, with_backbone: bool = True, **ids: Any
) -> str | None:
    """Writes the model at `model_url` to the local `folder`, which must be empty or missing, in MLflow's format.

    A head on features is saved with its backbone if that can be rebuilt identically; otherwise the saved model takes features.

    Args:
        model_url: URL of the model's folder.
        card: The model's description.
        folder: Local path.
        with_backbone: Whether to save a head with its backbone.
        ids: Further arguments of `mlflow.models.Model` about run and model.

    Returns:
        Why the model takes features although images were requested; None where it takes images or was not meant to.

    Raises:
        JobError: The model cannot be read.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory(prefix="firn-") as temporary:
        data = Path(temporary) / DATA_FOLDER
        (data / MODEL_FOLDER).mkdir(parents=True)
        for name in (CARD_NAME, NETWORK_NAME):
            storage.download(storage.join_url(model_url, name), data / MODEL_FOLDER / name)
        missing = None
        if with_backbone or card.features.feature_dtype == "uint8":
            try:
                _write_backbone(card, data / BACKBONE_FOLDER)
            except (FirnError, OSError) as error:
                missing = str(error)
        takes_images = (data / BACKBONE_FOLDER / BACKBONE_CARD).exists()
        logging.getLogger("mlflow.utils.environment").setLevel(
            logging.ERROR
        )  # it warns that pip is missing, as with uv
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
            mlflow.pyfunc.save_model(
                path=str(folder),
                loader_module="finetune.registry.pyfunc_model",
                data_path=str(data),
                code_paths=_own_code(),
                signature=_signature(takes_images=takes_images, is_head=card.features.feature_dtype == "float32"),
                pip_requirements=_requirements(card.features.backbone.get("engine")),
                metadata={
                    "model_id": card.model_id,
                    "classes": card.classes,
                    "takes": IMAGE if takes_images else FEATURES,
                },
                mlflow_model=Model(**ids),
            )
    return missing


def _write_backbone(card: ModelCard, folder: Path) -> None:
    """Writes what turns images into features: the cut backbone, or the size of the pixels."""
    with tempfile.TemporaryDirectory(prefix="firn-") as temporary:
        prepared = prepare_model_backbone(card, temporary)
        if prepared.path is not None:
            folder.mkdir(parents=True)
            shutil.move(prepared.path, folder / backbone_file(prepared.spec))
    _write_spec(folder, prepared.spec.as_dict(), sha256=prepared.sha256)


def _write_spec(folder: Path, spec: dict[str, Any], *, sha256: str | None) -> None:
    """Writes the backbone's description, last: without it there is no backbone."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"schema_version": SCHEMA_VERSION, "spec": spec, "sha256": sha256}
    (folder / BACKBONE_CARD).write_text(json.dumps(document, indent=2), encoding="utf-8")


def _signature(*, takes_images: bool, is_head: bool) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array, Map

    image = ColSpec(DataType.binary, IMAGE, required=not is_head)
    # Of any type if images are allowed: MLflow's Spark function fills the column that is not given with NaN, which is no list.
    kind = AnyType() if takes_images else Array(DataType.double)  # type: ignore[no-untyped-call]
    features = ColSpec(kind, FEATURES, required=not takes_images)
    outputs: list[Any] = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
        ColSpec(DataType.string, "error"),
    ]
    inputs: list[Any] = ([image] if takes_images else []) + ([features] if is_head else [])
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def _own_code() -> list[str] | None:
    """Firn's own packages, which are saved with the model; None where they are in a zip, as with `spark-submit --py-files`."""
    folders = [Path(package.__path__[0]) for package in (featurize, finetune)]
    return [str(folder) for folder in folders] if all(folder.is_dir() for folder in folders) else None


def _requirements(engine: str | None) -> list[str]:
    """The packages that `finetune.registry.pyfunc_model` needs, at the versions of this process."""
    found = []
    for name in (*_NEEDED, *([engine] if engine is not None else [])):
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:  # TensorFlow is distributed under two names
            continue
    return list(dict.fromkeys(found))
