"""Folders from Hugging Face as backbones: what their own files say, what a recipe says instead, weights in other files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.models.networks import noise
from helpers.models.onnx_networks import (
    PROCESSOR,
    TORCH,
    attend,
    features_of,
    prepare,
    same,
    save,
    vision_transformer,
    write_json,
)

from featurize.decoding.decode import Fit
from featurize.digests import sha256_file
from featurize.engines.onnx_graph import Normalization
from featurize.errors import UsageError

TIMM = {
    "input_size": [3, 24, 24],
    "interpolation": "bicubic",
    "crop_pct": 0.75,
    "mean": list(TORCH.mean),
    "std": list(TORCH.std),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as Hugging Face has it, of a transformer for images of any size."""
    save(vision_transformer(("batch", "num_channels", "height", "width")), tmp_path / "vit" / "model.onnx")
    write_json(tmp_path / "vit", config={"patch_size": 8}, preprocessor_config=PROCESSOR)
    return tmp_path / "vit"


def test_a_folder_says_how_images_are_prepared(folder: Path, tmp_path: Path) -> None:
    prepared = prepare(folder, tmp_path, layer=":cls")
    spec = prepared.spec
    assert (spec.name, spec.height, spec.width) == ("vit", 24, 24)
    assert (spec.fit, spec.normalization) == (Fit(32, "bicubic"), TORCH)
    assert spec.resizing == "shorter side to 32, Pillow bicubic, central 24 x 24"
    assert spec.network_sha256 == sha256_file(folder / "model.onnx")
    assert spec.weights_digest is None
    images = noise(3, 24, 24)
    expected = attend(vision_transformer(), TORCH.apply(images.astype(np.float32)))[:, 0]
    same(features_of(folder, images, tmp_path, layer=":cls"), expected)
    same(features_of(f"{folder}/", images, tmp_path, layer=":cls"), expected)


def test_the_network_may_lie_in_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    expected = prepare(folder, tmp_path, layer=":cls").spec
    (folder / "onnx").mkdir()
    for place in ("onnx/model.onnx", "onnx/model_fp32.onnx", "network.onnx"):
        shutil.move(next(folder.rglob("*.onnx")), folder / place)
        assert prepare(folder, tmp_path, layer=":cls").spec.preparation_id == expected.preparation_id


def test_a_folder_of_timm_says_it_in_its_own_words(folder: Path, tmp_path: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    write_json(folder, config={"architecture": "vit_tiny", "pretrained_cfg": TIMM})
    spec = prepare(folder, tmp_path, layer=":cls").spec
    assert (spec.fit, spec.normalization, spec.height) == (Fit(32, "bicubic", "round"), TORCH, 24)


@pytest.mark.parametrize(
    ("changes", "fit", "normalization", "size"),
    [
        ({"mean": [0.5] * 3, "std": [0.5] * 3, "scale": 0.1}, Fit(32, "bicubic"), Normalization(0.1, (0.5,) * 3, (0.5,) * 3), 24),
        ({"preprocessing": "none"}, Fit(32, "bicubic"), Normalization(), 24),
        ({"preprocessing": "caffe"}, Fit(32, "bicubic"), Normalization(1.0, (103.939, 116.779, 123.68), channel_order="bgr"), 24),
        ({"resize": 40, "crop": 16}, Fit(40, "bilinear"), TORCH, 16),
        ({"resize": 40, "crop": 32, "interpolation": "lanczos"}, Fit(40, "lanczos"), TORCH, 32),
        ({"resize": [16, 24], "height": 16, "width": 16}, Fit((16, 24), "bilinear"), TORCH, 16),
        ({"height": 32, "width": 32}, Fit(32, "bicubic"), TORCH, 32),
    ],
)  # fmt: skip
def test_the_recipe_replaces_what_the_folder_says(
    folder: Path, tmp_path: Path, changes: dict[str, Any], fit: Fit, normalization: Normalization, size: int
) -> None:
    prepared = prepare(folder, tmp_path, layer=":cls", **changes)
    spec = prepared.spec
    assert (spec.fit, spec.normalization, spec.height, spec.width) == (fit, normalization, size, size)
    images = noise(2, size, size)
    expected = attend(vision_transformer(), normalization.apply(images.astype(np.float32)))[:, 0]
    same(features_of(folder, images, tmp_path, layer=":cls", **changes), expected)


def test_a_size_that_the_folder_and_its_network_do_not_share_is_refused(folder: Path, tmp_path: Path) -> None:
    save(vision_transformer(("n", 3, 16, 16)), folder / "model.onnx")
    with pytest.raises(UsageError, match="input of height 16, but its configuration prepares images of 24"):
        prepare(folder, tmp_path, layer=":cls")
    with pytest.raises(UsageError, match=r"`backbone\.height` must be 16, the input of .* Got 24"):
        prepare(folder, tmp_path, layer=":cls", height=24)
    assert prepare(folder, tmp_path, layer=":cls", resize=20, crop=16).spec.fit == Fit(20)


def test_a_folder_without_one_network_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.onnx").rename(folder / "a.onnx")
    shutil.copy(folder / "a.onnx", folder / "b.onnx")
    with pytest.raises(UsageError, match=r"has 2 ONNX files, none of them model\.onnx\. Name one of them"):
        prepare(folder, tmp_path, layer=":cls")
    for name in ("a.onnx", "b.onnx"):
        (folder / name).unlink()
    with pytest.raises(UsageError, match="has no ONNX file"):
        prepare(folder, tmp_path, layer=":cls")
    with pytest.raises(UsageError, match=r"there is no folder .*/other"):
        prepare(tmp_path / "other", tmp_path, layer=":cls")


# Weights beside the file


@pytest.mark.parametrize("location", ["model.onnx_data", "weights/part.bin", "network.onnx", "beside"])
def test_weights_may_lie_beside_the_file(folder: Path, tmp_path: Path, location: str) -> None:
    model = vision_transformer()
    (folder / location).parent.mkdir(exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location=location, size_threshold=100)
    assert (folder / location).stat().st_size > 4000
    images = noise(3, 24, 24)
    expected = attend(vision_transformer(), TORCH.apply(images.astype(np.float32)))[:, 0]
    same(features_of(folder, images, tmp_path, layer=":cls"), expected)
    digest = sha256_file(folder / "model.onnx")
    assert prepare(folder, tmp_path, layer=":cls", weights_sha256=digest).spec.network_sha256 == digest


def test_other_weights_beside_the_same_file_are_another_backbone(folder: Path, tmp_path: Path) -> None:
    ids, files = set(), set()
    for seed in (0, 1):
        model = vision_transformer(seed=seed)
        (folder / "data").unlink(missing_ok=True)
        onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="data", size_threshold=0)
        spec = prepare(folder, tmp_path, layer=":cls").spec
        ids.add(spec.preparation_id)
        files.add(spec.network_sha256)
    assert len(files) == 1
    assert len(ids) == 2
