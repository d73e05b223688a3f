"""What people see on standard error: lines of Firn's, and nothing of Spark, TensorFlow or XLA."""

import re
from pathlib import Path

import pytest
from helpers.images.photos import make_photos
from helpers.project import Firn

pytestmark = [pytest.mark.spark, pytest.mark.slow]

_RECIPE = """
[images]
source = "photos"
[backbone]
name = "{backbone}"
preprocessing = "none"
precision = "float32"
[features]
url = "features"
[model]
name = "softmax_head"
url = "model"
[training]
optimizer = "sgd"
learning_rate = 0.01
batch_size = 8
epochs = 2
seed = 42
"""
_OTHERS = re.compile(
    r"^([IWEF]\d{4} |\d{4}-\d\d-\d\d |\d\d/\d\d/\d\d |\d\d:\d\d:\d\d |WARNING|Setting default|To adjust|.*Warning:)"
)


@pytest.mark.parametrize(
    "line",
    [
        "I0000 00:00:1795787847.060399    4424 service.cc:148] XLA service 0x7f784c0128f0 initialized",
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        'Setting default log level to "WARN".',
        "24/11/27 13:00:00 WARN NativeCodeLoader: Unable to load native-hadoop library",
        "2024-11-27 13:00:00.000000: I tensorflow/core/platform/cpu_feature_guard.cc:182]",
    ],
)
def test_a_line_of_theirs_is_known(line: str) -> None:
    assert _OTHERS.match(line)


def test_commands_show_no_lines_of_spark_and_xla(firn: Firn, tmp_path: Path, mean_backbone: Path) -> None:
    make_photos(tmp_path / "photos", per_class=8)
    (tmp_path / "recipe.toml").write_text(_RECIPE.format(backbone=mean_backbone))
    commands = (
        ("featurize", "run", "recipe.toml"),
        ("finetune", "fit", "recipe.toml"),
        ("finetune", "predict", "model", "--output", "predictions", "--images", "photos"),
    )
    for command in commands:
        made = firn(*command)
        assert made.returncode == 0, made.stderr
        assert made.stderr.strip()
        assert [line for line in made.stderr.splitlines() if _OTHERS.match(line)] == []
