"""Tests of finetune.training.checkpoints: a state comes back to the last bit, or with a reason why not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from featurize.errors import JobError
from finetune.training.checkpoints import CHECKPOINT_NAME, read_checkpoint, remove_checkpoint, write_checkpoint
from finetune.training.state import TrainingState


def make_state(epoch: int = 3) -> TrainingState:
    random = np.random.default_rng(epoch)
    weights = [random.normal(size=shape).astype(np.float32) for shape in ((4, 3), (3,))]
    return TrainingState(
        epoch=epoch,
        weights=weights,
        optimizer=[np.array(17, np.int64), np.array(0.1, np.float32), *weights],
        best_epoch=2,
        best_weights=[weight + 1 for weight in weights],
        history=[{"epoch": number, "loss": 1 / number, "accuracy": 0.1 * number} for number in range(1, epoch + 1)],
    )


def assert_equal_states(found: TrainingState | None, wanted: TrainingState) -> None:
    assert found is not None
    for field in dataclasses.fields(TrainingState):
        values, expected = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(expected, list) and isinstance(expected[0], np.ndarray | np.generic):
            assert [value.dtype for value in values] == [value.dtype for value in expected]
            for value, other in zip(values, expected, strict=True):
                np.testing.assert_array_equal(value, other)
        else:
            assert values == expected, field.name


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path), "a" * 64, make_state())
    assert_equal_states(read_checkpoint(str(tmp_path), "a" * 64), make_state())


def test_later_checkpoint_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    for epoch in (3, 4):
        write_checkpoint(str(tmp_path), "a" * 64, make_state(epoch))
    assert_equal_states(read_checkpoint(str(tmp_path), "a" * 64), make_state(4))
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]


def test_there_is_no_checkpoint_before_the_first_and_after_the_removal(tmp_path: Path) -> None:
    assert read_checkpoint(str(tmp_path / "nowhere"), "a" * 64) is None
    remove_checkpoint(str(tmp_path))
    write_checkpoint(str(tmp_path), "a" * 64, make_state())
    remove_checkpoint(str(tmp_path))
    assert read_checkpoint(str(tmp_path), "a" * 64) is None


def test_checkpoint_of_another_model_is_not_resumed(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path), "a" * 64, make_state())
    assert read_checkpoint(str(tmp_path), "b" * 64) is None


@pytest.mark.parametrize("length", [0, 10, 500, -1])
def test_damaged_checkpoint_is_refused_by_name(tmp_path: Path, length: int) -> None:
    write_checkpoint(str(tmp_path), "a" * 64, make_state())
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(JobError, match=r"checkpoint\.npz is damaged.*without `resume`"):
        read_checkpoint(str(tmp_path), "a" * 64)


def test_flipped_byte_is_found(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path), "a" * 64, make_state())
    path = tmp_path / CHECKPOINT_NAME
    content = bytearray(path.read_bytes())
    place = content.index(make_state().weights[0].tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(JobError, match="is damaged"):
        read_checkpoint(str(tmp_path), "a" * 64)


def test_checkpoint_that_cannot_be_written_is_named_with_its_epoch(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file where the folder should be")
    with pytest.raises(JobError, match=r"checkpoint\.npz of epoch 3 cannot be written: "):
        write_checkpoint(str(tmp_path / "model"), "a" * 64, make_state())
