"""Folders and files with names to which URLs, Hadoop's patterns and encodings give a meaning: a stream lists what is there."""

import json
import os
from pathlib import Path

import pytest
from helpers.project import Firn
from helpers.tables.predictions import read_rejects
from helpers.tables.stream_places import HOSTILE, Models, Place, listed_by_stream, rows_of, train_two
from pyspark.sql import SparkSession

from featurize.errors import UsageError
from featurize.sources.folders import open_files
from featurize.sources.listing import ImageReadError, planned_images
from featurize.sources.names import spelled_out, true_name
from featurize.sources.readers import NOT_UTF8
from finetune.streams.folder import check_name

ROOTS = ["a b", "a:b", "[a]*{b,c}?", "100% #1", "%5B+", "été 😀", "line\nbreak", "a\\b", "label=abc"]
NOT_TEXT = [b"caf\xe9.png", b"\xff", b"a\x80b/c.png", b"\xe9t\xc3\xa9.png"]


def put_hostile(folder: Path, *, with_bytes: bool) -> None:
    """A file with each name, in a folder with each name."""
    for number, name in enumerate(HOSTILE):
        for place in (folder, folder / HOSTILE[number - 1] / "deep"):
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.png").write_bytes(name.encode())
    for bad in NOT_TEXT if with_bytes else ():
        path = os.fsencode(folder) + b"/bytes/" + bad
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - Path takes no bytes
        Path(os.fsdecode(path)).write_bytes(bad)


@pytest.mark.spark
@pytest.mark.parametrize("root", ROOTS)
def test_a_stream_lists_what_predict_lists_whatever_the_names_are(
    spark: SparkSession, tmp_path: Path, root: str
) -> None:
    folder = tmp_path / root / "in"
    put_hostile(folder, with_bytes=True)
    url = f"file://{folder}"
    wanted = rows_of(open_files(url))
    assert len(wanted) == 2 * len(HOSTILE) + len(NOT_TEXT)
    batches = listed_by_stream(spark, url, f"file://{tmp_path}/checkpoint of {root}")
    assert len(batches) > 1
    assert sorted(row for batch in batches for row in batch) == wanted


@pytest.mark.parametrize("sign", ["[", "]", "{", "}", "*", "?", "\\"])
def test_a_folder_with_a_colon_and_a_sign_of_patterns_is_refused(tmp_path: Path, sign: str) -> None:
    for path in (f"a:b/c{sign}d", f"{sign}/a:b", f"a:{sign}"):
        with pytest.raises(UsageError, match=r"^`images`: Spark cannot watch the folder .*for a pattern") as refused:
            check_name(f"file://{tmp_path}/{path}")
        assert f"{tmp_path}/{path}: it takes a path with {sign} for" in str(refused.value)
    check_name(f"hdfs://host:9000/a{sign}b")
    check_name(f"file://{tmp_path}/a{sign}b")
    check_name(f"file://{tmp_path}/a:b")


@pytest.mark.spark
def test_a_link_leads_to_a_folder_that_cannot_be_watched_itself(spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "a:b [1]"
    put_hostile(folder, with_bytes=True)
    (tmp_path / "plain").symlink_to(folder)
    url = f"file://{tmp_path}/plain"
    check_name(url)
    batches = listed_by_stream(spark, url, f"file://{tmp_path}/checkpoint")
    assert sorted(row for batch in batches for row in batch) == rows_of(open_files(url))


def test_a_folder_whose_own_name_is_not_utf_8_is_refused() -> None:
    with pytest.raises(UsageError, match=r"folder /caf\\xe9/in is not UTF-8"):
        check_name("file:///caf\udce9/in")


@pytest.mark.parametrize("name", [os.fsdecode(name) for name in NOT_TEXT])
def test_a_name_that_is_spelled_out_leads_back_to_its_bytes(name: str) -> None:
    assert spelled_out(name).isprintable()
    assert true_name(spelled_out(name)) == os.fsencode(name)


def test_a_file_whose_name_is_not_utf_8_is_a_reject_that_says_so(tmp_path: Path) -> None:
    put_hostile(tmp_path / "in", with_bytes=True)
    source = open_files(f"file://{tmp_path}/in")
    images = planned_images(source.listing)
    spelled = {f"file://{tmp_path}/in/bytes/{spelled_out(os.fsdecode(name))}" for name in NOT_TEXT}
    for image, fetch in zip(images, source.reader.open(images), strict=True):
        if image.path in spelled:
            with pytest.raises(ImageReadError, match=NOT_UTF8):
                fetch()
        else:
            assert image.path.endswith(f"/{fetch().decode()}.png")
    (gone,) = source.reader.open(images[:1])
    Path(images[0].path.removeprefix("file://")).unlink()
    with pytest.raises(ImageReadError, match="the file is gone"):
        gone()


@pytest.fixture(scope="module")
def trained(spark: SparkSession, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return train_two(spark, photos, tmp_path_factory.mktemp("names"))


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("locale", ["POSIX", "C.UTF-8"])
def test_the_command_rejects_files_whose_names_are_not_utf_8_by_name(
    firn: Firn, spark: SparkSession, trained: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locale: str
) -> None:
    place = Place(spark, tmp_path)
    place.images.mkdir()
    place.arrive(1, corrupt=0)
    folder = place.images / "step #1?" / "red"
    image = next(folder.iterdir()).read_bytes()
    (folder / "été\n😀.png").write_bytes(image)
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(image)
    monkeypatch.setenv("LC_ALL", locale)
    places = ["--images", str(place.images), "--output", str(place.out), "--checkpoint", str(place.checkpoint)]
    ended = firn("finetune", "stream", str(trained["old"]), *places, "--once", "--json")
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])["images"]
    assert (answer["found"], answer["labelled"], answer["rejected"]) == (11, 10, 1)
    assert "1 files have names that are not UTF-8" in ended.stderr.replace("\n", " ")
    (reject,) = read_rejects(place.partition(trained.ids["old"])).to_dict("records")
    assert (reject["path"].rpartition("/")[2], reject["error"]) == ("caf\\xe9.png", NOT_UTF8)
