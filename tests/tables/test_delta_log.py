"""The Delta log against other readers of the protocol: they see exactly the files of each version."""

import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from featurize import storage
from featurize.errors import JobError
from featurize.tables import delta_log
from featurize.tables.delta_log import CHECKPOINT_EVERY, ListedFile, commit, latest_version, write_checkpoint

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("features", pa.list_(pa.float32())),
        ("exif", pa.map_(pa.string(), pa.string())),
        ("content", pa.binary()),
        ("rows", pa.int64()),
        ("label_index", pa.int32()),
        ("latitude", pa.float64()),
        ("predicted_at", pa.timestamp("us", tz="UTC")),
        ("split", pa.string()),
    ]
)
ID = "01234567-89ab-cdef-0123-456789abcdef"


def write(folder: Path, name: str, split: str = "train") -> ListedFile:
    path = f"data/split={split}/{name}.parquet"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    row = {"path": name, "features": [1.5, 2.5], "exif": [("Make", "Acme")], "content": b"\0", "label_index": 1}
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA.remove(SCHEMA.get_field_index("split"))), folder / path)
    return ListedFile(path, (folder / path).stat().st_size, 1, (("split", split),))


def begin(folder: Path, *files: ListedFile) -> None:
    heads = [delta_log.protocol(), delta_log.metadata(ID, SCHEMA, ["split"], 0)]
    assert commit(str(folder), 0, [*heads, *(file.added(0, data_change=True) for file in files)])


def names_by_polars(folder: Path) -> list[str]:
    return sorted(pl.scan_delta(str(folder)).collect()["path"].to_list())


def test_other_readers_see_the_files_of_each_version_with_their_types(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a"), write(tmp_path, "name with ümlaut, 100%", "test")
    write(tmp_path, "not listed")
    begin(tmp_path, first)
    changes = [second.added(1, data_change=True), first.removed(1, data_change=True)]
    assert commit(str(tmp_path), 1, changes)
    table = DeltaTable(str(tmp_path))
    assert [field.name for field in table.schema().fields] == SCHEMA.names
    assert table.version() == 1
    assert table.metadata().partition_columns == ["split"]
    row = pl.scan_delta(str(tmp_path)).collect().to_dicts()
    assert (row[0]["path"], row[0]["split"]) == ("name with ümlaut, 100%", "test")
    assert row[0]["features"] == [1.5, 2.5]
    assert pl.scan_delta(str(tmp_path), version=0).collect()["path"].to_list() == ["a"]


def test_of_two_writers_of_a_version_one_has_lost_and_changes_nothing(tmp_path: Path) -> None:
    begin(tmp_path, write(tmp_path, "a"))
    assert commit(str(tmp_path), 1, [write(tmp_path, "b").added(1, data_change=True)])
    assert not commit(str(tmp_path), 1, [write(tmp_path, "c").added(1, data_change=True)])
    assert names_by_polars(tmp_path) == ["a", "b"]
    assert latest_version(str(tmp_path)) == latest_version(str(tmp_path), known=0) == 1


def test_a_commit_whose_answer_was_lost_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, write(tmp_path, "a"))
    create = storage.create_exclusively

    def lose_the_answer(url: str, content: bytes) -> bool:
        create(url, content)
        raise OSError("the connection was reset")

    monkeypatch.setattr(storage, "create_exclusively", lose_the_answer)
    assert commit(str(tmp_path), 1, [write(tmp_path, "b").added(1, data_change=True)])
    with pytest.raises(OSError, match="reset"):
        commit(str(tmp_path), 1, [write(tmp_path, "c").added(2, data_change=True)])
    assert names_by_polars(tmp_path) == ["a", "b"]


def test_readers_begin_at_a_checkpoint_which_says_what_the_commits_say(tmp_path: Path) -> None:
    files = [write(tmp_path, f"{number:03d}") for number in range(7)]
    begin(tmp_path, files[0])
    now = delta_log.milliseconds()
    for number, file in enumerate(files[1:], start=1):
        assert commit(str(tmp_path), number, [file.added(now, data_change=True), *removal(files, number, now)])
    before = {version: DeltaTable(str(tmp_path), version=version).file_uris() for version in (4, 6)}
    write_checkpoint(str(tmp_path), 4)
    write_checkpoint(str(tmp_path), 6)  # begins at the first one
    for version in range(4):  # no reader may need these now
        Path(delta_log.commit_url(str(tmp_path), version).removeprefix("file://")).unlink()
    assert json.loads((tmp_path / "_delta_log/_last_checkpoint").read_text())["version"] == 6
    for version, uris in before.items():
        assert sorted(DeltaTable(str(tmp_path), version=version).file_uris()) == sorted(uris)
    assert names_by_polars(tmp_path) == ["000", "002", "003", "004", "005", "006"]
    tombstones = pq.read_table(tmp_path / f"_delta_log/{6:020d}.checkpoint.parquet")["remove"].to_pylist()
    assert [row["path"] for row in tombstones if row is not None] == [files[1].path]
    assert CHECKPOINT_EVERY > 6


def removal(files: list[ListedFile], number: int, now: int) -> list[delta_log.Action]:
    return [files[1].removed(now, data_change=True)] if number == 3 else []


@pytest.mark.parametrize("content", [b"", b"{", b"[]\n", b"1\n", b"\xff\xfe"])
def test_a_damaged_commit_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / f"{3:020d}.json").write_bytes(content)
    with pytest.raises(JobError, match=r"00003\.json is damaged"):
        delta_log.read_commit(str(tmp_path), 3)
