"""Folders from Hugging Face with weights in safetensors: read by keras-hub, computed by any engine but TensorFlow."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.networks import settings
from helpers.models.transformers import SIZE, TOKENS, WIDTH, compute_vit, write_safetensors_folder
from numpy.typing import NDArray
from pydantic import ValidationError

from featurize.backbones.backbone import load_backbone, open_backbone, prepare_backbone
from featurize.errors import UsageError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRN_CACHE", str(tmp_path / "cache"))


def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_features_are_those_of_the_formulas(tmp_path: Path, engine: Any) -> None:
    expected = compute_vit(write_safetensors_folder(tmp_path / "vit"), images())
    for layer, part in (
        (None, expected),
        ("vit_encoder:cls", expected[:, 0]),
        ("vit_encoder:mean", expected[:, 1:].mean(1)),
    ):
        prepared = prepare_backbone(settings(name=f"{tmp_path}/vit", engine=engine, layer=layer), tmp_path)
        found = load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)(images())
        np.testing.assert_allclose(found, part.reshape(3, -1), rtol=1e-4, atol=1e-4)
    assert prepared.spec.preprocessing == "stated"
    assert prepared.spec.mean == (0.5, 0.5, 0.5)
    assert prepared.spec.feature_shape == (WIDTH,)
    assert expected.shape == (3, TOKENS, WIDTH)


def test_the_exported_network_is_kept_and_other_weights_are_another_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(name=f"{tmp_path}/vit", layer="vit_encoder:cls", engine="onnxruntime")
    write_safetensors_folder(tmp_path / "vit")
    first = prepare_backbone(asked, tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "keras_hub", None)
        assert prepare_backbone(asked, tmp_path).spec == first.spec
        (tmp_path / "vit" / "model.safetensors").unlink()
        (tmp_path / "vit").rename(tmp_path / "old")
        write_safetensors_folder(tmp_path / "vit", seed=4)
        with pytest.raises(UsageError, match=r"which keras-hub reads\. Install keras-hub, sentencepiece"):
            prepare_backbone(asked, tmp_path)
    other = prepare_backbone(asked, tmp_path)
    assert other.spec.network_sha256 != first.spec.network_sha256
    assert other.spec.preparation_id != first.spec.preparation_id


def test_a_folder_that_keras_hub_saved_is_read(tmp_path: Path) -> None:
    import keras_hub

    write_safetensors_folder(tmp_path / "vit")
    network = keras_hub.models.Backbone.from_preset(str(tmp_path / "vit"))
    network.save_to_preset(str(tmp_path / "preset"))
    (tmp_path / "preset" / "preprocessor_config.json").write_bytes(
        (tmp_path / "vit" / "preprocessor_config.json").read_bytes()
    )
    features = []
    for name in ("vit", "preset"):
        prepared = prepare_backbone(settings(name=f"{tmp_path}/{name}", engine="onnxruntime"), tmp_path)
        features.append(load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)(images()))
    np.testing.assert_allclose(features[0], features[1], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    write_safetensors_folder(folder)
    asked = settings(name=str(folder), engine="onnxruntime")
    assert open_backbone(asked, tmp_path).engines() == ("openvino", "onnxruntime")
    with pytest.raises(ValidationError, match="`engine` must be auto"):
        settings(name=str(folder), engine="tensorflow")
    with pytest.raises(UsageError, match="no layer 'encoder'"):
        prepare_backbone(settings(name=str(folder), engine="onnxruntime", layer="encoder"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(UsageError, match="a network of type 'bert' in safetensors; keras-hub reads vit, deit"):
        prepare_backbone(asked, tmp_path)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UsageError, match="keras-hub cannot read"):
        prepare_backbone(asked, tmp_path)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UsageError, match="keras-hub cannot read"):
        prepare_backbone(asked, tmp_path)
    (folder / "preprocessor_config.json").unlink()
    write_safetensors_folder(tmp_path / "other")
    (tmp_path / "other" / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match="how images are prepared is not said"):
        prepare_backbone(settings(name=f"{tmp_path}/other", engine="onnxruntime"), tmp_path)
