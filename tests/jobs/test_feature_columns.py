"""Several columns of features: each equals the set that has it alone, whatever computes it and however networks are joined."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.tables.building import SPLIT
from helpers.tables.publishing import write_manifest
from pyspark.sql import SparkSession

import featurize
from featurize.errors import UsageError
from featurize.recipes.recipe import read_recipe

pytestmark = pytest.mark.spark


def whole(photos: Path, url: Path, **sections: Any) -> dict[str, Any]:
    """A recipe; `sections` are `backbone` or `backbones`."""
    return {
        "images": {"source": str(photos), "split": SPLIT, "max_reject_fraction": 1.0},
        "features": {"url": str(url), "rows_per_group": 7},
        **sections,
    }


def network(path: Path, **settings: Any) -> dict[str, Any]:
    """A section for a .keras file of the tests."""
    return {
        "name": str(path),
        "preprocessing": "none",
        "engine": "tensorflow",
        "precision": "float32",
        "batch_size": 8,
        **settings,
    }


def values(features: featurize.Features, column: str) -> pd.Series:
    """The rows of a column by image, in one order for all sets."""
    frame = features.to_pandas(columns=["path", "image_id", column]).sort_values("path")
    return frame.set_index("path")[column]


def assert_equal_columns(one: pd.Series, other: pd.Series) -> None:
    assert list(one.index) == list(other.index)
    np.testing.assert_allclose(np.stack(list(one)), np.stack(list(other)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["tensorflow", "openvino", "onnxruntime"])
def test_layers_of_one_network_are_the_columns_that_sets_of_one_layer_have(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path, engine: str
) -> None:
    layers = ["conv:mean", "pool", "mean"]
    several = featurize.run(
        whole(photos, tmp_path / "set", backbone=network(small_backbone, layers=layers, engine=engine)), spark=spark
    )
    assert several.manifest.column_names == ["features_conv_mean", "features_pool", "features_mean"]
    assert several.columns[-3:] == ("features_conv_mean", "features_pool", "features_mean")
    for layer, name in zip(layers, several.manifest.column_names, strict=True):
        alone = featurize.run(
            whole(photos, tmp_path / name, backbone=network(small_backbone, layer=layer, engine=engine)), spark=spark
        )
        assert_equal_columns(values(several, name), values(alone, "features"))
        chosen = several.manifest.of_column(name, several.url)
        assert chosen.preparation_id == alone.manifest.preparation_id
        assert chosen.feature_shape == alone.manifest.feature_shape
        assert several.manifest.made_by(alone.manifest.preparation_id).column == name
        assert several.manifest.content_digest == alone.manifest.content_digest


def test_several_backbones_each_see_the_image_at_their_own_size(
    spark: SparkSession, photos: Path, small_backbone: Path, mean_backbone: Path, tmp_path: Path
) -> None:
    sections = [
        network(small_backbone, layer="pool", batch_size=5),
        network(mean_backbone, column="features_colour", batch_size=11),
        {"name": "pixels", "height": 6, "width": 5},
    ]
    several = featurize.run(whole(photos, tmp_path / "set", backbones=sections), spark=spark)
    names = [f"features_{small_backbone.stem}_pool", "features_colour", "features_pixels"]
    assert several.manifest.column_names == names
    assert several.manifest.row_count == 60
    assert several.manifest.reject_count == 2
    for name, section in zip(names, sections, strict=True):
        alone = featurize.run(whole(photos, tmp_path / name, backbone={**section, "column": None}), spark=spark)
        assert_equal_columns(values(several, name), values(alone, "features"))
    x, _ = several.to_numpy("train", "features_pixels")
    assert x.dtype == np.uint8
    assert x.shape[1:] == (6, 5, 3)
    rows = several.to_spark(spark).filter("split = 'train'")
    assert rows.count() == len(x)
    assert set(names) < set(rows.columns)


def test_a_rerun_adds_rows_with_all_columns_and_other_columns_are_refused(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    recipe = whole(photos, tmp_path / "set", backbone=network(small_backbone, layers=["pool", "mean"]))
    first = featurize.run(recipe, spark=spark)
    again = featurize.run(recipe, spark=spark, overrides={"backbone.engine": "auto", "backbone.precision": "auto"})
    assert again.build is not None
    assert (again.build.added, again.build.skipped) == (0, 62)
    assert again.manifest == first.manifest
    with pytest.raises(UsageError, match=r"no column features_conv, .* `featurize add-column` computes it"):
        featurize.run(recipe, spark=spark, overrides={"backbone.layers": ["pool", "mean", "conv"]})


def test_readers_must_say_which_column(spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path) -> None:
    several = featurize.run(
        whole(photos, tmp_path / "set", backbone=network(small_backbone, layers=["pool", "mean"])), spark=spark
    )
    with pytest.raises(UsageError, match=r"`features.column` is required: .* features_pool, features_mean"):
        several.to_numpy("train")
    with pytest.raises(UsageError, match=r"no column of features 'features_poll'. Did you mean features_pool"):
        several.to_numpy("train", "features_poll")
    image = str(several.to_pandas("test", ["path"])["path"][0])
    with pytest.raises(UsageError, match=r"`features.column` is required"):
        several.similar(image)
    assert len(several.similar(image, k=3, column="features_mean").images) == 3
    with pytest.raises(ValueError, match="must not be published"):
        write_manifest(several.url, several.manifest.of_column("features_mean", several.url))
    facts = dict(several.describe().as_dict())
    assert [column["name"] for column in facts["columns"]] == ["features_pool", "features_mean"]
    assert "features_mean" in repr(several)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"backbone": {"name": "VGG16", "layers": ["fc1", "fc1"]}}, "names a layer twice"),
        ({"backbone": {"name": "VGG16", "layers": ["fc1:mean", "fc1 mean"]}}, "would be named features_fc1_mean"),
        ({"backbone": {"name": "VGG16", "layers": ["fc1"], "layer": "fc2"}}, "cannot be used together"),
        ({"backbone": {"name": "VGG16", "layers": ["fc1", "fc2"], "column": "features_x"}}, "names one column"),
        ({"backbone": {"name": "VGG16", "column": "fc1"}}, "column"),
        ({"backbone": {"name": "VGG16"}, "backbones": [{"name": "VGG19"}]}, "cannot be used together"),
        ({"backbones": [{"name": "VGG16"}, {"name": "VGG16"}]}, "would be named features_vgg16"),
    ],
)
def test_columns_that_cannot_be_are_refused_by_name(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_recipe(whole(Path("photos"), Path("set"), **sections))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_columns_that_would_be_the_same_are_refused(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path, precision: str
) -> None:
    section = network(small_backbone, layer="mean", precision=precision, engine="onnxruntime")
    sections = [{**section, "column": "features_a"}, {**section, "column": "features_b"}]
    with pytest.raises(UsageError, match="features_a and features_b would be the same features"):
        featurize.run(whole(photos, tmp_path / "set", backbones=sections), spark=spark)
