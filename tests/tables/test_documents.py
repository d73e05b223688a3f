"""Every JSON document of Firn is read in the same way: an absent one is none, and damaged ones and other versions are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurize.errors import JobError
from featurize.tables.predictions import Views, read_views_file
from featurize.tables.publication import read_manifest
from finetune.models.folder import read_model_card
from finetune.streams.checkpoint import Checkpoint, StreamRecord
from finetune.streams.drift_windows import read_position
from finetune.sweeps.folder import read_sweep

READERS: dict[str, Callable[[str], Any]] = {
    "manifest.json": read_manifest,
    "views.json": read_views_file,
    "model.json": read_model_card,
    "sweep.json": read_sweep,
    "firn/batch-3.json": lambda url: Checkpoint(url).read_pin(3, "query"),
    "drift/stream/_abc.json": lambda url: read_position(url, "abc"),
}
"""The reader of each document, by its path in the folder that the reader is given."""
NONE: dict[str, Any] = {"views.json": Views()}
PIN = {"query": "query", "model_id": "abc", "name": "model", "url": "file:///model", "pinned_at": "2026-01-01T00:00:00"}


@pytest.fixture(params=READERS)
def document(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def read(document: Path, folder: Path) -> Any:
    return READERS[str(document.relative_to(folder))](str(folder))


def test_an_absent_document_is_none(document: Path, tmp_path: Path) -> None:
    assert read(document, tmp_path) == NONE.get(document.name)


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "null", "\x00"])
def test_a_damaged_document_is_named(document: Path, tmp_path: Path, text: str) -> None:
    document.write_text(text)
    with pytest.raises(JobError, match=rf"{document.name} is damaged: .+\."):
        read(document, tmp_path)


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_another_version_is_refused_before_anything_else_is_checked(
    document: Path, tmp_path: Path, version: object
) -> None:
    document.write_text(json.dumps({"schema_version": version, "kind": "images", "everything": "new"}))
    with pytest.raises(JobError, match=rf"{document.name} has schema version {version!r}; this Firn reads [12]\."):
        read(document, tmp_path)


def test_a_stream_of_another_version_is_refused(tmp_path: Path) -> None:
    checkpoint, record = Checkpoint(str(tmp_path)), StreamRecord(images="file:///in", output="file:///out")
    checkpoint.begin(record)
    checkpoint.check(record)
    stored = tmp_path / "firn" / "stream.json"
    stored.write_text(json.dumps({**json.loads(stored.read_text()), "schema_version": 2}))
    with pytest.raises(JobError, match=r"stream\.json has schema version 2; this Firn reads 1\."):
        checkpoint.check(record)


def test_a_document_without_a_version_has_version_1(tmp_path: Path) -> None:
    (tmp_path / "firn").mkdir()
    (tmp_path / "firn" / "batch-3.json").write_text(json.dumps(PIN))
    pin = Checkpoint(str(tmp_path)).read_pin(3, "query")
    assert pin is not None
    assert pin.model_id == "abc"
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "images"}))
    with pytest.raises(JobError, match=r"manifest\.json has no schema version; this Firn reads 2\."):
        read_manifest(str(tmp_path))


def test_what_is_missing_is_named_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 2, "kind": "images"}))
    with pytest.raises(JobError, match=r"manifest\.json is damaged: images\.identity: Field required\."):
        read_manifest(str(tmp_path))
    (tmp_path / "views.json").write_text(json.dumps({"aliases": 7}))
    with pytest.raises(JobError, match=r"views\.json is damaged: aliases: .*\. Remove it; `finetune views` makes it"):
        read_views_file(str(tmp_path))
