"""Feature sets in int8: made, judged by heads, kept with their network, and refused where the network is hurt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images.photos import make_photos
from helpers.models.networks import settings
from helpers.tables.building import assert_same_rows, files_of, read_rows, recipe, stacked
from pyspark.sql import SparkSession

import featurize as firn
import finetune
from featurize.backbones.spec import BackboneSpec
from featurize.digests import sha256_file
from featurize.engines.engine import load_onnx
from featurize.engines.judging import MOST_LOSS
from featurize.errors import JobError, UsageError
from featurize.jobs import run as jobs_run
from featurize.jobs.engine_choice import EngineChoice
from featurize.jobs.image_samples import ImageSample
from featurize.jobs.run import featurize
from featurize.recipes.model_section import ModelSettings
from featurize.sources.opening import open_source
from featurize.tables.layout import NETWORKS
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import read_features_manifest
from finetune.networks.unfrozen import find_head

pytestmark = pytest.mark.spark
INT8: dict[str, Any] = {"precision": "int8", "engine": "onnxruntime", "layer": "mean"}


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """360 readable pictures of three classes, and one that is damaged."""
    folder = tmp_path_factory.mktemp("many")
    make_photos(folder, per_class=120)
    (folder / "red" / "000.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def made(
    spark: SparkSession, many_photos: Path, small_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A feature set in int8; do not change it."""
    folder = tmp_path_factory.mktemp("int8") / "set"
    featurize(spark, recipe(many_photos, folder, small_backbone, **INT8))
    return folder


def run(spark: SparkSession, photos: Path, folder: Path, backbone: Path, **changes: Any) -> FeaturesManifest:
    featurize(spark, recipe(photos, folder, backbone, **{**INT8, **changes}))
    return read_features_manifest(str(folder))


def network_of(folder: Path) -> Path:
    (network,) = (folder / NETWORKS).glob("*.onnx")
    return network


def fragile_network(folder: Path) -> Path:
    """A network with one large channel, beside which 8 bits leave nothing of the others, which alone tell colours apart."""
    import keras

    inputs = keras.Input((12, 12, 3))
    first = keras.layers.Conv2D(4, 1, name="first")
    second = keras.layers.Conv2D(3, 1, name="second")
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="mean")(second(first(inputs))))
    first.set_weights(
        [np.concatenate([np.eye(3), np.full((3, 1), 3000.0)], 1)[None, None].astype("f4"), np.zeros(4, "f4")]
    )
    second.set_weights([np.eye(4, 3)[None, None].astype("f4"), np.zeros(3, "f4")])
    path = folder / "fragile.keras"
    network.save(path)
    return path


def test_the_manifest_says_how_int8_was_judged_and_the_set_keeps_the_network(made: Path) -> None:
    manifest = read_features_manifest(str(made))
    backbone = manifest.backbone
    network = network_of(made)
    assert backbone["precision"] == "int8"
    assert backbone["quantized_sha256"] == network.stem == sha256_file(network)
    quantization = backbone["quantization"]
    judged = quantization["judged"]
    assert 80 <= quantization["calibration_images"] <= 120
    assert judged["classes"] == 3
    assert 150 <= judged["images"] <= 360
    assert 0.9 < judged["cosine"] <= 1
    low, high = judged["interval"]
    assert low <= judged["accuracy"] - judged["accuracy_int8"] <= high <= judged["bound"] == MOST_LOSS
    assert len(judged["losses"]) == 3
    assert json.loads(network.with_suffix(".json").read_text()) == {"schema_version": 1, **quantization}


def test_the_rows_are_what_the_kept_network_computes(made: Path, many_photos: Path) -> None:
    rows = read_rows(made)
    assert len(rows) == 360
    spec = BackboneSpec.from_dict(read_features_manifest(str(made)).backbone)
    forward = load_onnx(network_of(made), "onnxruntime", precision="int8")
    source = open_source(str(many_photos), None)
    pixels = [pixels for _, pixels in ImageSample(source, spec, decode_timeout_s=10).take(0, 20)]
    found = {tuple(np.round(row, 4)) for row in stacked(rows)}
    assert all(tuple(np.round(row, 4)) in found for row in forward(np.stack(pixels)))


def test_features_in_int8_are_near_those_in_float32_and_of_another_backbone(
    spark: SparkSession, made: Path, many_photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    exact = run(spark, many_photos, tmp_path / "exact", small_backbone, precision="float32")
    with pytest.raises(UsageError, match="exact holds features in float32, not in int8; a mixture is refused"):
        run(spark, many_photos, tmp_path / "exact", small_backbone)
    assert not (tmp_path / "exact" / NETWORKS).exists()
    assert exact.preparation_id != read_features_manifest(str(made)).preparation_id
    ours, theirs = read_rows(made), read_rows(tmp_path / "exact")
    np.testing.assert_allclose(stacked(ours), stacked(theirs.loc[ours.index]), atol=0.05 * stacked(theirs).max())
    assert not np.array_equal(stacked(ours), stacked(theirs.loc[ours.index]))


def test_a_rerun_and_images_that_come_later_use_the_kept_network(
    spark: SparkSession, small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, folder = tmp_path / "photos", tmp_path / "set"
    make_photos(photos, per_class=120)
    first = run(spark, photos, folder, small_backbone)
    before = read_rows(folder)
    monkeypatch.setattr("featurize.jobs.quantized.quantize_onnx", None)
    monkeypatch.setattr("featurize.jobs.quantized.judge", None)
    kept = files_of(folder)
    run(spark, photos, folder, small_backbone)
    assert files_of(folder) == kept
    make_photos(photos / "more", per_class=2, classes=("x",), seed=1)
    for index, picture in enumerate(sorted((photos / "more" / "x").iterdir())):
        picture.rename(photos / "red" / f"more-{index}.png")
    (photos / "more" / "x").rmdir()
    (photos / "more").rmdir()
    second = run(spark, photos, folder, small_backbone, precision="auto")
    after = read_rows(folder)
    assert len(after) == len(before) + 2
    assert_same_rows(after.loc[before.index], before)
    assert second.identity == first.identity
    assert second.backbone["quantization"] == first.backbone["quantization"]


def test_another_set_may_use_the_network_and_then_has_the_same_features(
    spark: SparkSession, made: Path, photos: Path, many_photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    there = read_features_manifest(str(made))
    other = run(spark, photos, tmp_path / "other", small_backbone, quantized=str(network_of(made)))
    assert other.preparation_id == there.preparation_id
    assert other.backbone["quantization"] == there.backbone["quantization"]
    assert network_of(tmp_path / "other").read_bytes() == network_of(made).read_bytes()


def test_a_network_that_quantisation_hurts_is_refused_with_the_numbers(
    spark: SparkSession, many_photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(JobError) as raised:
        run(spark, many_photos, tmp_path / "set", fragile_network(tmp_path), engine="auto")
    text = str(raised.value)
    assert text.startswith("`backbone.precision`: int8 is refused for fragile.keras: heads on ")
    assert "a loss of " in text
    assert "allowed 2), mean cosine " in text
    assert "OpenVINO int8" in text
    assert not (tmp_path / "set").exists()


def test_too_few_images_to_judge_by_are_refused(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"^`backbone\.precision`: int8 is judged by heads on at least 150 images"):
        run(spark, photos, tmp_path / "set", small_backbone)


def test_measuring_never_chooses_int8_by_itself(
    spark: SparkSession, many_photos: Path, small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    measure = EngineChoice._measure

    def noted(self: EngineChoice, *args: Any) -> Any:
        tried.extend(found := measure(self, *args))
        return found

    monkeypatch.setattr(EngineChoice, "_measure", noted)
    monkeypatch.setattr(jobs_run, "prepare_quantized", lambda *args, **options: pytest.fail("int8 was not asked for"))
    changes = {"engine": "auto", "precision": "auto"}
    assert run(spark, many_photos, tmp_path / "set", small_backbone, **changes).backbone["precision"] != "int8"
    assert tried
    assert all(one.precision != "int8" for one in tried)


def test_in_int8_all_precisions_are_measured_and_named(
    spark: SparkSession, many_photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    backbone = run(spark, many_photos, tmp_path / "set", small_backbone, engine="auto").backbone
    tried = {(one["engine"], one["precision"]) for one in backbone["engines"] if "error" not in one}
    needed = {(engine, precision) for engine in ("openvino", "onnxruntime") for precision in ("float32", "int8")}
    assert needed <= tried
    assert (backbone["engine"], "int8") == (backbone["engines"][0]["engine"], backbone["engines"][0]["precision"])


def test_a_kept_network_that_is_damaged_or_missing_or_of_another_is_refused(
    spark: SparkSession, made: Path, many_photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    network = network_of(made)
    damaged = tmp_path / network.name
    damaged.write_bytes(network.read_bytes()[:-10])
    refused = {
        str(damaged): "is damaged",
        str(tmp_path / "none.onnx"): "there is no file",
        str(small_backbone): "is damaged, or it is no network that Firn made",
    }
    for url, words in refused.items():
        with pytest.raises(UsageError, match=words):
            run(spark, many_photos, tmp_path / "set", small_backbone, quantized=url)
    with pytest.raises(UsageError, match="was made from another network"):
        run(spark, many_photos, tmp_path / "set", small_backbone, quantized=str(network), layer="scores")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "tensorflow"}, "TensorFlow does not compute in int8"),
        ({"engine": "auto", "precision": "float32", "quantized": "n.onnx"}, "`quantized` needs `precision`"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings("VGG16", **{"precision": "int8", **changes})
    with pytest.raises(ValueError, match="cannot be int8 with `pixels`"):
        settings("pixels", height=4, width=4, precision="int8")


@pytest.mark.slow
def test_a_model_gives_images_the_labels_of_their_features_and_cannot_be_unfrozen(
    spark: SparkSession, made: Path, many_photos: Path, tmp_path: Path
) -> None:
    model = finetune.fit(
        {
            "features": {"url": str(made)},
            "model": {"name": "softmax_head", "url": str(tmp_path / "model")},
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05},
        }
    )
    frame = firn.open_features(made).to_pandas(columns=["path", "features"]).set_index("path").sort_index()
    wanted = finetune.predict(model, np.stack(frame["features"].tolist()))["probability"]
    table = finetune.predict(model, many_photos, output=tmp_path / "out", spark=spark)
    by_table = table.to_pandas().set_index("path").sort_index()
    assert list(by_table.index) == list(frame.index)
    np.testing.assert_allclose(by_table["probability"], wanted, atol=1e-5)
    here = finetune.predict(model, [path.removeprefix("file://") for path in frame.index])
    np.testing.assert_allclose(here["probability"], wanted, atol=1e-5)
    asked = ModelSettings(name="unfrozen", url="-", head=str(tmp_path / "model"), unfreeze_from="conv")
    with pytest.raises(UsageError, match="a network in int8 cannot be trained further"):
        find_head(asked, read_features_manifest(str(made)))


def test_columns_in_int8_have_a_network_each_and_more_can_be_added(
    spark: SparkSession, many_photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    asked = recipe(many_photos, tmp_path / "set", small_backbone, **INT8).model_dump(exclude_none=True)
    del asked["backbone"]["layer"]
    asked["backbone"]["layers"] = ["mean"]
    before = firn.run(asked, spark=spark).to_pandas().set_index("path").sort_index()
    (there,) = (tmp_path / "set" / NETWORKS).glob("*.onnx")
    asked["backbone"]["layers"] = ["mean", "pool:mean"]
    asked["backbone"]["precision"] = "int8"
    added = firn.add_column(asked, spark=spark)
    assert added.manifest.column_names == ["features_mean", "features_pool_mean"]
    networks = sorted(path.stem for path in (tmp_path / "set" / NETWORKS).glob("*.onnx"))
    assert networks == sorted(one.backbone["quantized_sha256"] for one in added.manifest.columns)
    assert there.stem in networks
    assert len(networks) == 2
    after = added.to_pandas().set_index("path").sort_index()
    np.testing.assert_array_equal(np.stack(before["features_mean"].tolist()), np.stack(after["features_mean"].tolist()))
    kept = files_of(tmp_path / "set")
    again = firn.run(asked, spark=spark)
    assert again.build is not None
    assert again.build.added == 0
    assert files_of(tmp_path / "set") == kept
