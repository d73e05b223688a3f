"""Tests of the types of paths and URLs in documents."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from featurize import storage
from featurize.errors import JobError, UsageError
from featurize.storage.inner_path import InnerName, InnerPath, NamedUrl, named_url
from featurize.tables.documents import read_document


class Document(BaseModel):
    schema_version: int = 1
    path: InnerPath = "data/x"
    name: InnerName = "x"
    url: NamedUrl = "file:///x"


GOOD = [
    *({"path": path} for path in ("x.parquet", "data/split=train/part-0.parquet", "a b/ä", ".hidden", "..x/y..")),
    *({"name": name} for name in ("x", "0" * 64, "model.name")),
    *({"url": url} for url in ("file:///a/b", "hdfs://name:8020/a", "/a/b", "file:/a", "hdfs:///a")),
]
BAD = [
    *({"path": path} for path in ("", "/x", "../x", "a/../x", "a/./x", "a//x", "x/", "..", ".")),
    *(
        {"path": path}
        for path in ("file:///x", "http://x", "c:x", "a\\x", "a\nx", "a\0x", "a\x1b[2J", "\u2028", "x" * 5000)
    ),
    *({"name": name} for name in ("", "a/b", "..", ".", "/", "a\\b", "x:y", "a\tb")),
    *({"url": url} for url in ("", "x", "../x", "http://h/x", "s3://b/x", "file://../x", "/a/../b", "hdfs://u:p@h/x")),
    *({"url": url} for url in ("file:///a\nb", "javascript:x", "//host/\x00")),
]


@pytest.mark.parametrize("fields", GOOD)
def test_what_may_be_named_is_kept_as_it_is(fields: dict[str, str]) -> None:
    assert Document.model_validate(fields).model_dump() == Document().model_dump() | fields


@pytest.mark.parametrize("fields", BAD)
def test_what_leads_elsewhere_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Document.model_validate(fields)


def test_a_fault_names_the_document_and_the_field(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/model.json"
    storage.write_json(url, {"path": "../x"})
    with pytest.raises(JobError, match=r"model\.json is damaged: path: .*'../x' is not a plain path inside"):
        read_document(url, Document, version=1)


def test_a_url_remembers_which_document_names_it(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/model.json"
    storage.write_json(url, {"url": "hdfs://127.0.0.1:1/x"})
    found = read_document(url, Document, version=1)
    assert found is not None
    with pytest.raises(UsageError, match=r"model\.json names 'hdfs://127\.0\.0\.1:1/x'"):
        storage.exists(found.url)


def test_a_url_inside_the_folder_of_its_document_is_followed_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    storage.write_json(f"file://{tmp_path}/model.json", {"url": f"file://{tmp_path}/link"})
    found = read_document(f"file://{tmp_path}/model.json", Document, version=1)
    assert found is not None
    with pytest.raises(JobError, match="link is a link"):
        storage.list_files(found.url)


def test_a_url_in_the_free_part_of_a_document_is_checked_at_once() -> None:
    assert named_url("file:///x", document="file:///a/manifest.json") == "file:///x"
    for url in ("hdfs://h:1/x", "../x", "http://h/x"):
        with pytest.raises(UsageError, match=r"file:///a/manifest\.json"):
            named_url(url, document="file:///a/manifest.json")


@pytest.mark.parametrize("version", [0, 2, True, "1", None, 1.0, [1]])
def test_a_document_of_another_version_is_refused(tmp_path: Path, version: object) -> None:
    url = f"file://{tmp_path}/model.json"
    storage.write_json(url, {"schema_version": version})
    with pytest.raises(JobError, match=r"model\.json has schema version .*; this Firn reads 1"):
        read_document(url, Document, version=1)
