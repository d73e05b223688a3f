"""Hostile folders: every field of every document and every file that Firn reads is replaced by what an attacker would put there.

Nothing outside may be opened, changed or removed, nobody may be connected to, and an error must name the folder. A field that
names a URL may name another local one, by the rule in `featurize/storage/checked_url.py`: that may be read, and nothing more.
"""

import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.models.logged_models import registry_in
from helpers.trust.places import FOLDERS, READERS, Reader, make_places, sweep_document
from helpers.trust.watch import Watch, watching
from pyspark.sql import SparkSession

from featurize.errors import FirnError
from featurize.recipes.recipe import Recipe
from featurize.recipes.toml_settings import check_settings
from featurize.storage import claims
from featurize.tables import publication
from finetune.api.sweeping import _log
from finetune.sweeps.folder import read_sweep
from finetune.sweeps.plan import plan_sweep

LOCAL_URLS = re.compile(r"(^|\.)(url|features|images|output|name|weights|source)$")
"""Fields of documents that may name a local URL elsewhere."""
KEPT_ITEMS = 1  # of a list: others would be treated alike
_PARQUET = ".parquet"


@pytest.fixture(scope="module")
def root(spark: SparkSession, mean_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folders as they should be, and beside them `outside`, with copies of all that links will lead to."""
    before = os.environ.get("FIRN_CACHE")
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=memory)) if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("hostile")
    make_places(spark, mean_backbone, root)
    for name in FOLDERS:
        shutil.copytree(root / name, root / "outside" / name)
    yield root
    shutil.rmtree(root)
    os.environ.pop("FIRN_CACHE") if before is None else os.environ.update(FIRN_CACHE=before)


@pytest.fixture(scope="module")
def watch(root: Path) -> Iterator[Watch]:
    with watching(root / "outside") as found:
        yield found


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim of a holder who cannot be seen is taken at once, not after two minutes for each field that makes it so."""
    monkeypatch.setattr(claims, "EXPIRY_S", 0.0)


class Case:
    """A folder with one thing in it replaced, in place of the right one while the case is tried."""

    def __init__(self, root: Path, name: str, watch: Watch) -> None:
        self.folder, self._right, self._watch = root / name, root / f"{name} as it was", watch
        self._failures: list[str] = []
        self.tried = 0

    def __enter__(self) -> "Case":
        self.folder.rename(self._right)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._right.rename(self.folder)
        shown = "\n".join(self._failures[:40])
        assert not self._failures, f"{len(self._failures)} of {self.tried} cases:\n{shown}"

    def files(self) -> list[Path]:
        """All files and folders in the folder, below it."""
        return [path.relative_to(self._right) for path in sorted(self._right.rglob("*"))]

    def right(self, inner: Path) -> Path:
        return self._right / inner

    def errors(self, readers: list[Reader], change: Callable[[Path], object]) -> list[str]:
        """The errors of the readers, each on a folder of its own."""
        found = []
        for reader in readers:
            shutil.copytree(self._right, self.folder, copy_function=os.link, symlinks=True)
            change(self.folder)
            publication._cached.clear()
            try:
                reader(self.folder)
            except FirnError as error:
                found.append(str(error))
            shutil.rmtree(self.folder)
        return found

    def attempt(
        self,
        what: str,
        readers: list[Reader],
        change: Callable[[Path], object],
        *,
        may_read: bool = False,
        value: str = "",
    ) -> None:
        """Makes the folder, changes it, and lets the readers have it. An error must name it or one that it refers to."""
        whole = f"{self.folder.parent.name}/{self.folder.name}"
        self.tried += 1
        shutil.copytree(self._right, self.folder, copy_function=os.link, symlinks=True)
        change(self.folder)
        publication._cached.clear()
        self._watch.seen(may_read=False)
        for reader in readers:
            try:
                reader(self.folder)
            except FirnError as error:
                if f"{self.folder.parent.name}/" not in str(error) and ("/" not in value or value not in str(error)):
                    self._failures.append(f"{what}: the error does not name it: {error}")
            except OSError as error:
                if whole not in str(error.filename):
                    self._failures.append(f"{what}: the error does not name it: {error!r}")
            except Exception as error:
                self._failures.append(f"{what}: {type(error).__name__}: {error}")
        self._failures += [f"{what}: {event}" for event in self._watch.seen(may_read=may_read)]
        shutil.rmtree(self.folder)


def hostile_texts(root: Path, port: int) -> list[str]:
    """Paths and URLs that lead outside; those after the first three never lead to a local file."""
    outside = root / "outside" / "features" / "manifest.json"
    return [
        f"../outside/{'features'}",
        str(outside.parent),
        outside.parent.as_uri(),
        f"hdfs://127.0.0.1:{port}/x",
        f"http://127.0.0.1:{port}/x",
        "a\nb\x1b[2J",
    ]


WRONG_TYPES: list[Any] = [None, [[]], {}]


def fields_of(document: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all fields of a document, also those that hold others; of a list only the first ones."""
    if place:
        yield place
    if isinstance(document, dict):
        for key, value in document.items():
            yield from fields_of(value, (*place, key))
    if isinstance(document, list):
        for number, value in enumerate(document[:KEPT_ITEMS]):
            yield from fields_of(value, (*place, number))


def at(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        document = document[key]
    return document


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    at(copy, place[:-1])[place[-1]] = value
    return copy


def write(inner: Path, content: bytes) -> Callable[[Path], None]:
    """Puts other content into a file, in a new one: the old one is shared with the right folder."""

    def change(folder: Path) -> None:
        (folder / inner).unlink()
        (folder / inner).write_bytes(content)

    return change


def documents_in(path: Path) -> list[tuple[Any, Callable[[Any], bytes]]]:
    """The JSON documents in a file, with how to put another in place of each: a whole file, its lines, or what is in Parquet."""
    content = path.read_bytes()
    if path.suffix == ".npz":
        with np.load(io.BytesIO(content)) as arrays:
            found = dict(arrays)
        return [(json.loads(found["facts"].tobytes()), partial(_npz, found))]
    if path.suffix == _PARQUET:
        table = pq.read_table(io.BytesIO(content))
        return [
            (json.loads(value), partial(_parquet, table, key))
            for key, value in (table.schema.metadata or {}).items()
            if key.startswith(b"firn")
        ]
    try:
        return [(json.loads(content), encode)]
    except ValueError:
        return _lines(content)


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


def _lines(content: bytes) -> list[tuple[Any, Callable[[Any], bytes]]]:
    try:
        lines = content.decode().splitlines()
        found = [(number, json.loads(line)) for number, line in enumerate(lines) if line.startswith("{")]
    except ValueError:
        return []

    def put(number: int, new: Any) -> bytes:
        return "\n".join([*lines[:number], json.dumps(new), *lines[number + 1 :]]).encode()

    return [(document, partial(put, number)) for number, document in found]


def _npz(arrays: dict[str, Any], facts: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{**arrays, "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)})
    return file.getvalue()


def _parquet(table: pa.Table, key: bytes, document: Any) -> bytes:
    file = io.BytesIO()
    metadata = {**(table.schema.metadata or {}), key: json.dumps(document).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


@pytest.mark.parametrize("name", FOLDERS)
def test_no_field_of_a_document_leads_outside(root: Path, name: str, watch: Watch) -> None:
    texts = hostile_texts(root, watch.port)
    reading, cleaning = list(READERS[name].read), list(READERS[name].clean)
    seen = set[Any]()
    with Case(root, name, watch) as case:
        for inner in (path for path in case.files() if case.right(path).is_file()):
            for document, put in documents_in(case.right(inner)):
                places = tuple(fields_of(document))
                if (inner.suffix, places) in seen:  # another document of the same kind
                    continue
                seen.add((inner.suffix, places))
                for place in places:
                    label = ".".join(str(part) for part in place)
                    is_text = isinstance(at(document, place), str)
                    for value in [*(texts if is_text else texts[:1]), *WRONG_TYPES]:
                        what = f"{inner}: {label} = {value!r}"
                        may_read = value in texts[:3] and bool(LOCAL_URLS.search(label))
                        change = write(inner, put(replaced(document, place, value)))
                        readers = [*reading, *cleaning] if value in texts else reading
                        case.attempt(what, readers, change, may_read=may_read, value=str(value))
        assert case.tried


@pytest.mark.parametrize("name", FOLDERS)
def test_no_file_that_is_a_link_or_damaged_leads_outside(root: Path, name: str, watch: Watch) -> None:
    readers = [*READERS[name].read, *READERS[name].load, *READERS[name].clean]
    with Case(root, name, watch) as case:
        for inner in case.files():
            outside = root / "outside" / name / inner

            case.attempt(f"{inner} is a link", readers, partial(_link, inner, outside))
            case.attempt(f"{inner} is gone", readers, partial(_remove, inner))
            if outside.is_dir():
                continue
            case.attempt(f"{inner} is a folder", readers, partial(_make_folder, inner))
            for content in (b"", b"[", b"[" * 100_000, b"[]", b'{"schema_version": 99}', b"\xff" * 100):
                case.attempt(f"{inner} is {content[:20]!r}", readers, write(inner, content))


def _remove(inner: Path, folder: Path) -> None:
    path = folder / inner
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _link(inner: Path, outside: Path, folder: Path) -> None:
    _remove(inner, folder)
    (folder / inner).symlink_to(outside)


def _make_folder(inner: Path, folder: Path) -> None:
    _remove(inner, folder)
    (folder / inner).mkdir()


@pytest.mark.parametrize("name", FOLDERS)
def test_every_document_has_a_schema_version_and_one_of_another_is_refused(root: Path, name: str, watch: Watch) -> None:
    readers = [*READERS[name].read, *READERS[name].load, *READERS[name].clean]
    with Case(root, name, watch) as case:
        for inner in (path for path in case.files() if case.right(path).is_file()):
            if name == "checkpoint" and inner.parent.name != "firn":  # Spark's
                continue
            for document, put in documents_in(case.right(inner)):
                own = document
                if "_delta_log" in inner.parts:  # Delta's, with Firn's own part
                    own = document.get("commitInfo", {}).get("firn")
                if own is None:
                    continue
                assert own["schema_version"] in (1, 2, 3), inner
                own["schema_version"] = 99
                found = case.errors(readers, write(inner, put(document)))
                is_refused = any("schema version 99" in error for error in found)
                assert is_refused or (name == "cache" and not found), inner  # what is kept is made again


def test_models_elsewhere_that_a_sweep_names_are_not_logged(root: Path) -> None:
    registry = registry_in(root)
    plan = plan_sweep(check_settings(Recipe, sweep_document(root, registry=registry), origin="test"), origin="test")
    card = read_sweep(str(root / "sweep"))
    assert card is not None
    elsewhere = [trial.model_copy(update={"url": f"file://{root}/outside/model"}) for trial in card.trials]
    logged = _log(plan, card.model_copy(update={"trials": elsewhere}))
    assert logged is not None
    assert (logged.logged, logged.there) == (0, 0)
    assert not (root / "mlflow.db").exists()


def test_a_table_that_is_reached_through_a_link_is_read_and_written(root: Path, watch: Watch) -> None:
    (root / "linked").symlink_to(root / "features")
    for reader in (*READERS["features"].read, *READERS["features"].clean):
        reader(root / "linked")
    assert (root / "features" / "_delta_log").exists()
