"""A .keras file that asks for more memory than there is: it is refused before anything of that size is made."""

import json
import random
import resource
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from featurize.backbones.keras_network import build_network
from featurize.engines import keras_memory
from featurize.engines.keras_memory import check_keras_memory
from featurize.errors import JobError, UsageError
from featurize.memory import machine_memory_bytes
from featurize.recipes.backbone_section import BackboneSettings
from finetune.models.folder import load_network

FITS, HUGE = 16, 10**13


def small_network() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="image")
    features = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    features = keras.layers.BatchNormalization()(features)
    features = keras.layers.Dropout(0.5)(keras.layers.GlobalAveragePooling2D(name="mean")(features))
    return keras.Model(inputs, keras.layers.Dense(FITS, name="dense")(features))


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keras") / "honest.keras"
    small_network().save(path)
    return path


def rewritten(honest: Path, path: Path, *, keep_build: bool = True, units: int = HUGE) -> Path:
    """The file with `units` in its dense layer, and nothing else changed."""
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                for layer in config["config"]["layers"]:
                    if layer["name"] == "dense":
                        layer["config"]["units"] = units
                    if not keep_build:
                        layer.pop("build_config", None)
                content = json.dumps(config).encode()
            target.writestr(name, content)
    return path


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("keep_build", [True, False])
def test_a_backbone_that_asks_for_too_much_is_refused_in_one_sentence(
    honest: Path, tmp_path: Path, keep_build: bool
) -> None:
    path = rewritten(honest, tmp_path / "huge.keras", keep_build=keep_build)
    before = peak_bytes()
    with pytest.raises(
        UsageError, match=r"its weights ask for 200,000\.0 GB of memory, and this machine has"
    ) as raised:
        build_network(BackboneSettings(name=str(path), layer="mean", preprocessing="none"))
    assert "\n" not in str(raised.value)
    assert peak_bytes() - before < 1 << 28


def test_a_model_that_asks_for_too_much_is_refused(honest: Path, tmp_path: Path) -> None:
    path = rewritten(honest, tmp_path / "huge.keras")
    with pytest.raises(JobError, match=r"^received/model.keras cannot be loaded: its weights ask for 200,000\.0 GB"):
        load_network(path, origin="received/model.keras")


def test_a_network_inside_a_network_is_counted(tmp_path: Path, honest: Path) -> None:
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(FITS, name="dense")], name="inner")
    outer = keras.Sequential([keras.Input((4,)), inner])
    outer.save(tmp_path / "outer.keras")
    with zipfile.ZipFile(tmp_path / "outer.keras") as source:
        config = source.read("config.json").decode()
    with zipfile.ZipFile(tmp_path / "huge.keras", "w") as target:
        target.writestr("config.json", config.replace(f'"units": {FITS}', f'"units": {HUGE}'))
    with pytest.raises(ValueError, match="its weights ask for"):
        check_keras_memory(tmp_path / "huge.keras")


def test_the_limit_is_the_memory_of_the_machine(honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(weight.nbytes for weight in small_network().get_weights())
    unpacked = sum(member.file_size for member in zipfile.ZipFile(honest).infolist())
    check_keras_memory(honest)
    monkeypatch.setattr(keras_memory, "machine_memory_bytes", lambda: unpacked - 1)
    with pytest.raises(ValueError, match="it unpacks to"):
        check_keras_memory(honest)
    assert weights < unpacked


def test_a_long_description_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "long.keras", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("config.json", b" " * (keras_memory.MAX_CONFIG_BYTES + 1))
    with pytest.raises(ValueError, match="has more than 64 MiB"):
        check_keras_memory(tmp_path / "long.keras")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"class_name": "Nothing"}', b"[" * 100_000])
def test_what_is_no_network_is_left_to_keras(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "odd.keras", "w") as target:
        target.writestr("config.json", content)
    check_keras_memory(tmp_path / "odd.keras")
    (tmp_path / "no_zip.keras").write_bytes(content)
    check_keras_memory(tmp_path / "no_zip.keras")


def test_a_network_that_fits_is_the_same_and_nothing_else_changes(honest: Path) -> None:
    random.seed(5)
    state = random.getstate()
    check_keras_memory(honest)
    assert random.getstate() == state
    with keras.StatelessScope():  # at its end Keras gives values to all variables that it still knows of
        pass
    loaded, wanted = load_network(honest, origin="honest"), keras.saving.load_model(honest, compile=False)
    for own, other in zip(loaded.get_weights(), wanted.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)


def test_the_memory_of_the_machine_is_what_the_kernel_says() -> None:
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < machine_memory_bytes() <= int(total.split()[1]) * 1024
