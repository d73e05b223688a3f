"""Tests of prediction.threshold: thresholds by precision on the validation split, and predictions that abstain below them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.logged_models import train_model, write_clusters
from helpers.tables.building import files_of
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.tables.predictions import manifest_of, predicted, read_predictions
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from featurize.errors import UsageError
from featurize.tables.readable import read_features_manifest
from finetune.models.folder import ModelCard, load_model, read_model_card
from finetune.networks.forward import predict_probabilities
from finetune.prediction.threshold import best_precision, choose_threshold, find_threshold
from finetune.rows.splits import read_split

rows_of_answers = st.lists(
    st.tuples(st.sampled_from(np.linspace(0, 1, 9, dtype=np.float32).tolist()), st.booleans()), min_size=1, max_size=40
)


@given(rows_of_answers, st.floats(0.05, 1))
def test_the_threshold_keeps_as_many_as_the_precision_allows(rows: Sequence[tuple[float, bool]], wanted: float) -> None:
    probabilities, right = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    threshold = find_threshold(probabilities, right, precision=wanted)
    enough = [value for value in probabilities if right[probabilities >= value].mean() >= wanted]
    assert (threshold is None) == (not enough) == (best_precision(probabilities, right) < wanted)
    if threshold is not None:
        assert (probabilities >= threshold).sum() == (probabilities >= min(enough)).sum()
        assert threshold not in probabilities or threshold == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature set of classes that overlap, and a model on it; do not change what is in them."""
    folder = tmp_path_factory.mktemp("abstaining")
    write_clusters(folder / "set")
    train_model(folder / "set", folder / "model", learning_rate=0.1)
    return folder


def card_of(folder: Path) -> ModelCard:
    card = read_model_card(str(folder))
    assert card is not None
    return card


def validation_of(place: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The highest probabilities of the validation split, and whether they are those of the true classes."""
    split = read_split(str(place / "set"), read_features_manifest(str(place / "set")), "validation")
    found = predict_probabilities(load_model(str(place / "model"))[0], split.features)
    return found.max(axis=1).astype(float), found.argmax(axis=1) == split.label_index


def reachable(place: Path) -> float:
    """A precision that some threshold gives, and giving every image a label does not."""
    probabilities, right = validation_of(place)
    best = best_precision(probabilities, right)
    assert best > right.mean()
    return float((best + right.mean()) / 2)


def test_the_precision_holds_on_the_validation_split(place: Path) -> None:
    wanted = reachable(place)
    threshold = choose_threshold(str(place / "model"), card_of(place / "model"), target_precision=wanted)
    probabilities, right = validation_of(place)
    kept = probabilities >= threshold.threshold
    assert 0 < kept.sum() < len(kept)
    assert right[kept].mean() >= wanted
    assert (threshold.rows, threshold.kept, threshold.right) == (len(right), kept.sum(), right[kept].sum())
    assert threshold.precision_low < threshold.right / threshold.kept
    assert threshold.features == (place / "set").as_uri()


def test_what_cannot_be_reached_is_refused(place: Path, tmp_path: Path) -> None:
    for precision in (0.0, 1.5):
        with pytest.raises(UsageError, match=r"must be in \(0, 1\]"):
            choose_threshold(str(place / "model"), card_of(place / "model"), target_precision=precision)
    features, label_index = make_clusters(90, dim=6)
    write_feature_set(tmp_path / "alike", np.zeros_like(features), label_index)  # one answer, which is right for some
    train_model(tmp_path / "alike", tmp_path / "model")
    with pytest.raises(
        UsageError, match=r"no threshold reaches a precision of 1: on the 18 images.*the best is 0\.\d{4}"
    ):
        choose_threshold(str(tmp_path / "model"), card_of(tmp_path / "model"), target_precision=1.0)


@pytest.mark.spark
def test_predictions_below_the_threshold_have_a_reason_and_no_label(
    spark: SparkSession, place: Path, tmp_path: Path
) -> None:
    wanted, out = reachable(place), tmp_path / "out"
    result = predicted(spark, place / "model", out, features=place / "set", target_precision=wanted)
    rows = read_predictions(out)
    (folder,) = out.glob("model_id=*")
    threshold = manifest_of(folder).threshold
    assert threshold is not None
    below = rows["probability"].astype(float) < threshold["threshold"]
    assert 0 < below.sum() < len(rows)
    assert (rows["label"].isna() == below).all()
    assert (rows["reason"].notna() == below).all()
    assert rows["reason"].dropna().str.contains("probability below").all()
    given = [row for row, abstained in zip(rows["top_labels"], below, strict=True) if not abstained]
    assert list(rows["label"].dropna()) == [row[0] for row in given]
    assert result.manifest.rows["predicted"][""] == below.sum()
    assert (threshold["precision"], threshold["split"]) == (wanted, "validation")
    before = files_of(out)
    again = predicted(spark, place / "model", out, features=place / "set", target_precision=wanted)
    assert (again.added, again.skipped) == (0, 200)
    assert files_of(out) == before
    with pytest.raises(UsageError, match=r"threshold"):
        predicted(spark, place / "model", out, features=place / "set")
