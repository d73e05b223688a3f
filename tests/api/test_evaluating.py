"""Tests of `finetune.evaluate`."""

import json
from html import escape
from pathlib import Path

import numpy as np
import pytest
from helpers.models.report_folders import HOSTILE
from helpers.tables.feature_sets import make_clusters, write_feature_set

import featurize
import finetune
from finetune.api.model import Model


def test_the_scores_are_those_that_are_written_beside_the_model(model: Model) -> None:
    found = finetune.evaluate(model)
    written = json.loads(Path(found.files["evaluation"].removeprefix("file://")).read_text())
    assert found.files["evaluation"] == f"{model.url}/evaluation-test.json"
    assert written == found.result
    for name in ("accuracy", "top5_accuracy", "precision", "recall", "f1", "log_loss", "rows"):
        assert getattr(found, name) == written[name]
    assert (found.split, found.features) == ("test", model.card.features.url)
    assert found.confusion.to_numpy().tolist() == written["confusion_matrix"]
    assert found.logged is None


def test_the_confusion_matrix_is_a_frame_by_class(model: Model) -> None:
    found = model.evaluate(split="validation")
    confusion = found.confusion
    assert list(confusion.index) == list(confusion.columns) == model.classes
    assert confusion.to_numpy().sum() == found.rows
    assert found.accuracy == np.trace(confusion.to_numpy()) / found.rows
    wrong = found.most_confused
    assert len(wrong)
    for true, predicted, count in zip(wrong["true"], wrong["predicted"], wrong["count"], strict=True):
        assert confusion.loc[true, predicted] == count
    assert found.accuracy == pytest.approx(model.metrics["validation_accuracy"])


def test_it_is_plotted_and_shown_as_tables_with_escaped_text(model: Model) -> None:
    found = model.evaluate()
    axes = found.plot().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert HOSTILE in repr(found)
    html = found._repr_html_()
    assert HOSTILE not in html
    assert escape(HOSTILE) in html
    for shown in (repr(found), html):
        assert f"{found.accuracy:.4f}" in shown


def test_another_feature_set_and_folder_can_be_given(model: Model, feature_set: Path, tmp_path: Path) -> None:
    by_object = finetune.evaluate(model, featurize.open_features(feature_set), output=tmp_path / "there")
    by_name = finetune.evaluate(model.url, str(feature_set))
    assert by_object.result == by_name.result
    assert (tmp_path / "there" / "confusion-test.png").read_bytes().startswith(b"\x89PNG")
    features, label_index = make_clusters(60, dim=5)
    write_feature_set(tmp_path / "set", features, label_index, classes=model.classes)
    with pytest.raises(finetune.UsageError, match="another backbone"):
        finetune.evaluate(model, tmp_path / "set")
    with pytest.raises(finetune.UsageError, match="split 'rest' has no rows"):
        model.evaluate(split="rest")
