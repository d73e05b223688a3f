"""The command `featurize backbones`, run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.project import Firn

from featurize.backbones.known import PIXELS, find_backbones, known_networks
from featurize.engines.engine import installed_engines, precisions_of
from featurize.engines.measurement import Measurement
from featurize.errors import UsageError
from featurize.jobs.backbones_listing import MeasuredBackbone, measure_backbone

HEAVY = ("keras", "numpy", "pyarrow", "pyspark", "tensorflow")
_CALL = """
import sys
from featurize.__main__ import app
app(["backbones", *sys.argv[1:]], standalone_mode=False)
print(sorted(set(sys.modules) & set({heavy!r})))
"""
_AFTER_ANOTHER = """
import keras
keras.applications.MobileNetV3Small(weights=None)
from featurize.__main__ import main
main()
"""


def result_of(ended: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def test_every_backbone_is_a_line_with_its_layer_and_its_cost(firn: Firn) -> None:
    ended = firn("featurize", "backbones", timeout_s=60)
    assert ended.returncode == 0, ended.stderr
    lines = {line.split()[0]: line.split() for line in ended.stdout.splitlines() if line}
    assert set(lines) > {one.name for one in known_networks()} | {"pixels"}
    assert lines["VGG16"] == ["VGG16", "224", "x", "224", "4,096", "fc2", "134.3", "M", "30.93", "caffe"]
    assert lines["pixels"] == ["pixels", "any", "pixels", "0", "0", "none"]
    for kind in (".keras", ".onnx", "Hugging Face", "two for a multiplication"):
        assert kind in ended.stdout


def test_json_has_the_same_and_only_what_is_named(firn: Firn) -> None:
    result = result_of(firn("featurize", "backbones", "resnet50*", "pixels", "--json", timeout_s=60))
    assert result["backbones"] == [one.as_dict() for one in (*find_backbones(["ResNet50", "ResNet50V2"]), PIXELS)]
    assert result["backbones"][0]["flops"] == 2 * result["backbones"][0]["multiply_adds"]
    assert result["measured"] == []


def test_the_list_needs_neither_tensorflow_nor_spark(tmp_path: Path) -> None:
    call = [sys.executable, "-c", _CALL.format(heavy=HEAVY)]
    ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert "EfficientNetLite0" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MobilNet"], "'MobilNet'. Did you mean MobileNet"),
        (["--measure"], "`--measure` needs `NAME`"),
        (["pixels", "--measure"], "nothing to measure"),
    ],
)
def test_a_wrong_call_is_one_message(firn: Firn, arguments: list[str], message: str) -> None:
    ended = firn("featurize", "backbones", *arguments, timeout_s=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("error:") == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_each_engine_is_measured_in_each_precision_and_the_best_is_marked(tmp_path: Path) -> None:
    """Also where Keras has built the same network before, so that it would give the layers other names."""
    call = [sys.executable, "-c", _AFTER_ANOTHER, "backbones", "mobilenetv3small", "--measure", "--json"]
    environment = {**os.environ, "FIRN_CACHE": str(tmp_path / "cache")}
    result = result_of(subprocess.run(call, env=environment, capture_output=True, text=True, timeout=600, check=False))
    (measured,) = result["measured"]
    assert (measured["name"], measured["weights"]) == ("MobileNetV3Small", "random, seed 42")
    assert measured["layer"] == result["backbones"][0]["layer"]
    tried = {(one["engine"], one["precision"]) for one in measured["measured"]}
    assert tried == {(engine, precision) for engine in installed_engines() for precision in precisions_of(engine)}
    assert all(one["images_per_s"] > 0 for one in measured["measured"])
    assert [one["is_best"] for one in measured["measured"]] == [True, *[False] * (len(tried) - 1)]


def test_the_best_is_the_fastest_that_keeps_the_features() -> None:
    right = Measurement("tensorflow", "float32", 8, 10.0, 1.0)
    wrong = Measurement("openvino", "bfloat16", 8, 99.0, 0.9)
    assert MeasuredBackbone("VGG16", "fc2", "random", 2, (right, wrong)).best is right
    assert MeasuredBackbone("VGG16", "fc2", "random", 2, (wrong,)).best is None


def test_pixels_are_not_measured() -> None:
    with pytest.raises(UsageError, match="no network"):
        measure_backbone(PIXELS)
