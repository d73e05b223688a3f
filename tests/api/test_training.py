"""Tests of `finetune.fit` and `finetune.load_model`."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.toml_files import write_toml
from pyspark.sql import SparkSession

import featurize
import finetune
from finetune.api.model import Model
from finetune.training.checkpoints import CHECKPOINT_NAME

Document = Callable[..., dict[str, Any]]


def test_fit_returns_the_model_with_its_numbers(model: Model, feature_set: Path) -> None:
    assert model.url.endswith("/model")
    assert not model.is_reused
    assert list(model.history.index) == [1, 2, 3]
    best = model.history.loc[model.card.best_epoch]
    assert model.metrics["validation_accuracy"] == best["validation_accuracy"] > 0.5
    assert model.classes == featurize.open_features(feature_set).classes
    assert len(model.model_id) == 64
    assert model.plot().axes[0].get_xlabel() == "epoch"


def test_it_shows_itself_as_a_table_of_escaped_text(model: Model) -> None:
    for shown in (repr(model), model._repr_html_()):
        assert "softmax_head" in shown
        assert f"{model.metrics['validation_accuracy']:.4f}" in shown
        assert model.model_id[:16] in shown
    assert model._repr_html_().count("<tr>") == repr(model).count("\n")


def test_the_same_settings_give_the_model_that_is_there(make_document: Document, model: Model, tmp_path: Path) -> None:
    folder = Path(model.url.removeprefix("file://"))
    again = finetune.fit(make_document(folder, epochs=3))
    assert again.is_reused
    assert again == model
    recipe = write_toml(tmp_path / "recipe.toml", make_document(tmp_path / "other"))
    by_path = finetune.fit(recipe, overrides={"model.url": str(folder)})
    assert by_path.is_reused
    assert finetune.load_model(folder) == model


def test_another_model_is_replaced_only_where_that_is_asked_for(make_document: Document, tmp_path: Path) -> None:
    first = finetune.fit(make_document(tmp_path / "model", epochs=1))
    with pytest.raises(finetune.UsageError, match="holds another model"):
        finetune.fit(make_document(tmp_path / "model", epochs=2))
    second = finetune.fit(make_document(tmp_path / "model", epochs=1), overrides={"training.epochs": 2}, overwrite=True)
    assert second.model_id != first.model_id
    assert len(second.history) == 2


def test_what_is_wrong_with_a_call_is_said(make_document: Document, tmp_path: Path) -> None:
    document = make_document(tmp_path / "model")
    with pytest.raises(finetune.UsageError, match=r"^`ranks` must be at least 1. Got 0.$"):
        finetune.fit(document, ranks=0)
    with pytest.raises(
        finetune.UsageError, match=r"the recipe: 1 fault:\n  - `training.epoch` is not a key; did you mean"
    ):
        finetune.fit(document, overrides={"training.epoch": 3})
    with pytest.raises(finetune.UsageError, match=r"the section \[model\] is missing"):
        finetune.fit({"features": document["features"]})
    with pytest.raises(finetune.UsageError, match="there is no model"):
        finetune.load_model(tmp_path / "model")


@pytest.mark.spark
def test_a_session_with_too_few_slots_is_named_and_left_as_it_was(
    make_document: Document, tmp_path: Path, spark: SparkSession
) -> None:
    with pytest.raises(finetune.UsageError, match="slots"):
        finetune.fit(make_document(tmp_path / "model"), ranks=2, spark=spark)
    assert spark.range(3).count() == 3


def test_a_rank_of_horovodrun_is_told_to_use_the_command(
    make_document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOROVOD_RANK", "0"), ("HOROVOD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(finetune.UsageError, match="run the command `finetune fit`"):
        finetune.fit(make_document(tmp_path / "model"))


def test_a_checkpoint_that_is_not_used_is_said(
    make_document: Document, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = make_document(tmp_path / "model", epochs=1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / CHECKPOINT_NAME).write_bytes(b"of a training that was killed")
    with caplog.at_level(logging.WARNING, logger="finetune"):
        finetune.fit(document)
    assert ["`resume=True` (--resume) resumes it" in record.getMessage() for record in caplog.records] == [True]
