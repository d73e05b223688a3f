"""Two drivers of one stream, of which one was taken for dead: a batch has one model, and nobody repeats what is done."""

from pathlib import Path

import pytest

from featurize.errors import JobError
from finetune.streams.checkpoint import Checkpoint, Pin


def pin(model: str, query: str = "q") -> Pin:
    return Pin(query=query, model_id=model, name="m", url="file:///m", pinned_at="2026-01-01T00:00:00")


def test_the_first_record_of_a_batch_counts(tmp_path: Path) -> None:
    checkpoint = Checkpoint(str(tmp_path))
    assert checkpoint.write_pin(3, pin("a")) == pin("a")
    assert checkpoint.write_pin(3, pin("b")) == pin("a")
    assert checkpoint.read_pin(3, "q") == pin("a")
    assert checkpoint.write_pin(3, pin("b", "a new query")) == pin("b", "a new query")


def test_records_of_earlier_batches_go_and_those_of_later_ones_stay(tmp_path: Path) -> None:
    checkpoint = Checkpoint(str(tmp_path))
    for batch in (3, 9, 10, 4):
        checkpoint.write_pin(batch, pin("a"))
    assert [batch for batch in range(12) if checkpoint.read_pin(batch, "q")] == [4, 10]


@pytest.mark.parametrize("done", [3, 4])
def test_a_batch_that_another_driver_has_finished_is_not_begun(tmp_path: Path, done: int) -> None:
    checkpoint = Checkpoint(str(tmp_path))
    (tmp_path / "commits").mkdir()
    for name in ("2", f".{done}.crc", "notes"):
        (tmp_path / "commits" / name).write_text("v1\n{}")
    checkpoint.check_unfinished(3)
    (tmp_path / "commits" / str(done)).write_text("v1\n{}")
    with pytest.raises(JobError, match="another driver of this stream has finished batch 3"):
        checkpoint.check_unfinished(3)
