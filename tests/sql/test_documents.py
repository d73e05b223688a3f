"""Tests of `featurize export`: what it writes is parsed as OpenSearch and Solr parse it, and the schema has every field."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.images.camera_files import CAMERA, GPS, MAIN, WHOLE, file_with
from helpers.project import Firn
from helpers.tables.building import Built, read_rows
from helpers.tables.feature_sets import image_ids
from helpers.tables.sql_sets import write_features, write_plain_predictions, write_predictions
from pyspark.sql import Row, SparkSession

from featurize.errors import UsageError
from featurize.sql.documents import Engine, Export, document_id, make_document, search_rows, write_documents
from featurize.sql.tables import find_tables

pytestmark = pytest.mark.spark
ENGINES: tuple[Engine, ...] = ("opensearch", "solr")
FIRST, SECOND = "0" * 64, "0" * 63 + "1"
MODELS: dict[str, list[str | None]] = {FIRST: ["ant"] * 20, SECOND: ["bee"] * 15 + [None] * 5}


def export(
    spark: SparkSession,
    output: Path,
    engine: Engine,
    *,
    model: str | None = None,
    rows_per_file: int = 1000,
    **urls: Any,
) -> Export:
    frame = search_rows(spark, find_tables(**urls), model=model)
    return write_documents(frame, f"file://{output}", engine=engine, index="my-images", rows_per_file=rows_per_file)


def read_bulk(files: list[Path]) -> dict[str, dict[str, Any]]:
    """Documents by id, as OpenSearch reads a bulk request: a line for the action, one for the document, the last line ended."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        text = file.read_bytes().decode()
        assert text.endswith("\n")
        lines = text[:-1].split("\n")
        assert len(lines) % 2 == 0
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            ((verb, target),) = json.loads(action, parse_constant=refuse).items()
            assert (verb, target["_index"], set(target)) == ("index", "my-images", {"_index", "_id"})
            found[target["_id"]] = json.loads(document, parse_constant=refuse)
    return found


def read_solr(files: list[Path]) -> dict[str, dict[str, Any]]:
    """Documents by id, as Solr reads JSON that is one object after the other."""
    documents = [json.loads(line, parse_constant=refuse) for file in files for line in file.read_text().splitlines()]
    return {document["id"]: {key: value for key, value in document.items() if key != "id"} for document in documents}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def read_export(written: Export, engine: Engine) -> dict[str, dict[str, Any]]:
    files = [Path(file.removeprefix("file://")) for file in written.files]
    found = read_bulk(files) if engine == "opensearch" else read_solr(files)
    assert len(found) == written.documents
    fields = fields_of(written, engine)
    for document in found.values():
        for name, value in document.items():
            check_value(value, fields[name])
    return found


def fields_of(written: Export, engine: Engine) -> dict[str, dict[str, Any]]:
    schema = json.loads(Path(written.schema.removeprefix("file://")).read_text())
    if engine == "opensearch":
        assert schema["mappings"]["dynamic"] == "strict"
        properties: dict[str, dict[str, Any]] = schema["mappings"]["properties"]
        return properties
    return {field["name"]: field for field in schema["add-field"]}


def check_value(value: Any, field: dict[str, Any]) -> None:
    """Whether a value is one that the type of a field takes."""
    kind = field["type"]
    is_list = field.get("multiValued", kind == "strings")
    if isinstance(value, list):
        assert "multiValued" not in field or is_list
    values = value if isinstance(value, list) else [value]
    for one in values:
        if kind in ("integer", "long", "short", "byte", "pint", "plong"):
            assert type(one) is int
        elif kind in ("float", "double", "pfloat", "pdouble"):
            assert type(one) is float
        elif kind == "geo_point":
            assert -90 <= one["lat"] <= 90
            assert -180 <= one["lon"] <= 180
        elif kind == "location":
            assert len([float(part) for part in one.split(",")]) == 2
        elif kind == "pdate":
            assert datetime.strptime(one, "%Y-%m-%dT%H:%M:%S.%fZ")
        elif kind == "date":
            assert datetime.fromisoformat(one)
        elif kind == "flat_object":
            assert all(isinstance(text, str) for text in one.values())
        else:
            assert (kind in ("keyword", "string", "strings"), type(one)) == (True, str)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_image_is_a_document_with_what_a_model_said(spark: SparkSession, tmp_path: Path, engine: Engine) -> None:
    write_features(tmp_path / "set", rows=40)
    write_predictions(tmp_path / "predictions", MODELS)
    written = export(
        spark,
        tmp_path / "out",
        engine,
        model=SECOND,
        rows_per_file=15,
        features=str(tmp_path / "set"),
        predictions=str(tmp_path / "predictions"),
    )
    assert [file.rpartition("/")[2] for file in written.files] == [f"part-{part:05d}.jsonl" for part in range(3)]
    found = read_export(written, engine)
    assert len(found) == 40
    ids = image_ids(40)
    for row in range(40):
        document = found[document_id(f"photos/{row:05d}.png")]
        assert (document["image_id"], document["label"] in ("ant", "bee", "cat")) == (ids[row], True)
        assert "features" not in document
        assert document.get("predicted_label") == ("bee" if row < 15 else None)
        assert document.get("reason") == ("below the threshold" if 15 <= row < 20 else None)
        assert document.get("model_id") == (SECOND if row < 20 else None)
        if row < 20:
            assert document["probability"] == pytest.approx(0.5 + row / 40)
            assert document["top_labels"] == ["ant", "bee", "cat"]
            moment = datetime.fromtimestamp(1_700_000_000, UTC)
            assert datetime.fromisoformat(document["predicted_at"]).replace(microsecond=0) == moment


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_camera_wrote_is_in_it(spark: SparkSession, tmp_path: Path, firn: Firn, engine: Engine) -> None:
    """By the command, from an images table. The two images are equal, and are documents each."""
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "x y.jpg").write_bytes(file_with(MAIN, CAMERA, GPS, format="JPEG"))
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\ntitle = "Mine"\nlicence = "CC0-1.0"\nlayout = "folders"\nsource = "photos"\n'
    )
    assert firn("featurize", "ingest", "mine.toml", "--output", "images").returncode == 0
    done = firn(
        "featurize", "export", "--to", engine, "--images", "images", "--output", "out", "--index", "my-images", "--json"
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    found = read_export(Export(said["documents"], said["files"], said["schema"]), engine)
    assert len(found) == 2
    for document in found.values():
        assert "content" not in document
        assert (document["camera"], document["iso"]) == (WHOLE.camera, WHOLE.iso)
        assert document["taken_at"] == WHOLE.taken_at
        assert document["location"] == ({"lat": 46.125, "lon": 7.78125} if engine == "opensearch" else "46.125,7.78125")
        assert "latitude" not in document
        assert len(document["colour_mean"]) == 3
    again = firn("featurize", "export", "--images", "images", "--output", "out")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    assert firn("featurize", "export", "--images", "images", "--output", "out", "--overwrite").returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mapping.json", "part-00000.jsonl"]


def test_without_a_model_the_latest_is_taken_and_views_have_names(spark: SparkSession, tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions", MODELS)
    for model in (None, "latest", SECOND):
        out = tmp_path / str(model)
        found = read_export(export(spark, out, "solr", model=model, predictions=str(tmp_path / "predictions")), "solr")
        assert {document["model_id"] for document in found.values()} == {SECOND}


def test_predictions_alone_are_documents_too(spark: SparkSession, tmp_path: Path) -> None:
    write_plain_predictions(tmp_path / "predictions", {FIRST: MODELS[FIRST]})
    found = read_export(export(spark, tmp_path / "out", "solr", predictions=str(tmp_path / "predictions")), "solr")
    assert {document["predicted_label"] for document in found.values()} == {"ant"}
    assert len(found) == 20


def test_a_set_that_spark_made_is_exported(spark: SparkSession, built: Built, tmp_path: Path) -> None:
    found = read_export(export(spark, tmp_path / "out", "opensearch", features=str(built.folder)), "opensearch")
    rows = read_rows(built.folder)
    assert set(found) == {document_id(path) for path in rows.index}
    assert {document["split"] for document in found.values()} == set(rows["split"])


def test_what_is_asked_for_must_be_clear(spark: SparkSession, tmp_path: Path) -> None:
    write_features(tmp_path / "set", rows=40)
    write_predictions(tmp_path / "predictions", MODELS)
    urls: dict[str, Any] = {"features": str(tmp_path / "set"), "predictions": str(tmp_path / "predictions")}
    write_plain_predictions(tmp_path / "plain", MODELS)
    with pytest.raises(
        UsageError, match=rf"predictions of 2 models; `model` \(--model\) must choose one: {FIRST}, {SECOND}"
    ):
        export(spark, tmp_path / "out", "solr", **{**urls, "predictions": str(tmp_path / "plain")})
    with pytest.raises(UsageError, match="`model` must be the first digits of one of"):
        export(spark, tmp_path / "out", "solr", model="00", **urls)
    with pytest.raises(UsageError, match="`images` and `features` cannot be combined"):
        search_rows(spark, [])
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export(spark, tmp_path / "taken", "solr", model=SECOND, **urls)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "predictions", "set", "taken"]


def test_numbers_that_are_none_and_half_a_place_are_left_out() -> None:
    row = Row(path="a", iso=float("nan"), latitude=47.5, longitude=None, aperture=2.8)
    assert make_document(row, "opensearch") == {"path": "a", "aperture": 2.8}
    place = Row(path="a", latitude=47.5, longitude=8.0, exif={"Model": "X", "Make": "Y"})
    assert make_document(place, "opensearch")["location"] == {"lat": 47.5, "lon": 8.0}
    assert make_document(place, "solr") == {"path": "a", "location": "47.5,8.0", "exif": ["Make=Y", "Model=X"]}
