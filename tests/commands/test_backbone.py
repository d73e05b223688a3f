"""The command `featurize backbone`, run as a user runs it: what it prints, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.models.networks import small_network
from helpers.models.onnx_networks import conv_network, save
from helpers.project import Firn

from featurize.backbones.known import find_backbones


def result_of(ended: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def test_a_line_for_every_layer_with_its_cost_and_the_total_last(firn: Firn, tmp_path: Path) -> None:
    small_network(tmp_path)
    ended = firn("featurize", "backbone", "small.keras", timeout_s=120)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert lines[0] == ["small.keras,", "for", "images", "of", "12", "x", "12"]
    assert lines[2] == ["conv", "Conv2D", "10", "x", "10", "x", "8", "800", "224", "0.04", "99.8", "%"]
    assert lines[5] == ["scores", "Dense", "5", "5", "45", "0.00", "0.2", "%", "default"]
    assert lines[6] == ["total", "269", "0.04", "100.0", "%"]


def test_a_named_network_is_known_in_any_case_and_costs_what_the_table_says(firn: Firn) -> None:
    result = result_of(firn("featurize", "backbone", "mobilenet", "--json", timeout_s=120))
    (known,) = find_backbones(["MobileNet"])
    assert (result["name"], result["height"], result["width"]) == (known.name, known.height, known.width)
    assert (result["parameters"], result["multiply_adds"]) == (known.whole_parameters, known.whole_multiply_adds)
    assert result["flops"] == 2 * known.whole_multiply_adds
    assert (result["usual_layer"], result["default_layer"]) == (known.layer, "predictions")
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert layers["conv_pw_13"]["type"] == "Conv2D"
    assert layers["conv_pw_13"]["shape"] == [7, 7, 1024]
    assert layers["conv_pw_13"]["features"] == 7 * 7 * 1024
    assert layers["conv_pw_13"]["flops"] == 2 * 49 * 1024**2
    assert sum(layer["share_percent"] for layer in result["layers"]) == pytest.approx(100)
    usual = [layer["name"] for layer in result["layers"]].index(known.layer)
    assert sum(layer["parameters"] for layer in result["layers"][: usual + 1]) == known.parameters
    assert sum(layer["multiply_adds"] for layer in result["layers"][: usual + 1]) == known.multiply_adds


def test_a_network_of_any_size_is_listed_for_the_one_that_is_asked_for(firn: Firn, tmp_path: Path) -> None:
    save(conv_network(("n", 3, "height", "width")), tmp_path / "any.onnx")
    refused = firn("featurize", "backbone", "any.onnx", "--json", timeout_s=120)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "`backbone.height` is required" in refused.stderr
    result = result_of(firn("featurize", "backbone", "any.onnx", "--height", "8", "--width", "12", "--json"))
    assert [layer["shape"] for layer in result["layers"][:2]] == [[6, 6, 10], [6, 6, 10]]
    assert result["multiply_adds"] == 60 * 6 * 27


def test_the_advice_on_an_hdf5_file_makes_the_file_that_can_be_listed(firn: Firn, tmp_path: Path) -> None:
    import keras

    keras.saving.load_model(small_network(tmp_path)).save(tmp_path / "old.h5")
    refused = firn("featurize", "backbone", str(tmp_path / "old.h5"), timeout_s=120)
    assert refused.returncode == 2
    (advice,) = re.findall("`(keras.models.load_model.*?)`", refused.stderr)
    subprocess.run([sys.executable, "-c", f"import keras\n{advice}"], cwd=tmp_path, check=True, capture_output=True)
    listed = result_of(firn("featurize", "backbone", "old.keras", "--json", timeout_s=120))
    assert [layer["name"] for layer in listed["layers"]] == ["conv", "pool", "mean", "scores"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MobilNet", "'MobilNet'. Did you mean MobileNet"),
        ("ResNet50*", "must be one backbone. 'ResNet50*' stands for ResNet50, ResNet50V2."),
        ("pixels", "pixels is no network"),
        ("missing.keras", "there is no file missing.keras"),
        ("missing.onnx", "there is no file missing.onnx"),
        ("./missing", "there is no folder ./missing"),
        ("damaged.keras", "damaged.keras cannot be loaded as a Keras model"),
        ("flowers.h5", 'keras.models.load_model("flowers.h5", compile=False).save("flowers.keras")'),
        ("./saved", "python -m tf2onnx.convert --saved-model ./saved --output saved.onnx"),
    ],
)
def test_what_cannot_be_listed_is_one_message(firn: Firn, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "damaged.keras").write_bytes(b"no archive")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    ended = firn("featurize", "backbone", name, timeout_s=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("error:") == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
