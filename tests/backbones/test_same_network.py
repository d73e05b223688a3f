"""One network as a .keras and as an .onnx file gives the same features, whatever computes it."""

from pathlib import Path

import numpy as np
import pytest
from helpers.models.networks import load, settings

from featurize.backbones.backbone import prepare_backbone
from featurize.decoding.decode import decode_image
from featurize.engines.engine import ENGINES


@pytest.mark.realdata
def test_features_of_real_images_are_within_a_ten_thousandth(real_data: Path, tmp_path: Path) -> None:
    folder = real_data.parent / "backbones"
    photos = sorted((real_data / "objects").rglob("*.jpg"))[::400][:6]
    images = np.stack([decode_image(photo.read_bytes(), height=224, width=224) for photo in photos])
    features = {}
    for suffix in (".keras", ".onnx"):
        for engine in ENGINES:
            if (suffix, engine) != (".onnx", "tensorflow"):
                name = folder / f"efficientnet_lite0_imagenet{suffix}"
                prepared = prepare_backbone(settings(name, engine=engine, preprocessing="none"), tmp_path)
                features[suffix, engine] = load(prepared)(images)
    reference = features[".keras", "tensorflow"]
    assert len(features) == 5
    assert np.abs(reference).max() > 1
    for found in features.values():
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-4)
