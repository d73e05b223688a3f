"""Images as documents of a search engine: JSON lines for OpenSearch's bulk API or for Solr, with the schema.

    <output>/part-00000.jsonl ...    documents, up to a fixed number in a file
    <output>/mapping.json            OpenSearch: the body that creates the index
    <output>/schema.json             Solr: the commands of its Schema API

A document is an image at its path. Its id is a digest of the path, so that documents loaded again replace the earlier ones.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import islice
from typing import IO, Any, Literal
from uuid import uuid4

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql.functions import col
from pyspark.sql.types import ArrayType, DataType, MapType, StructType

from featurize import storage
from featurize.digests import sha256_bytes
from featurize.errors import UsageError
from featurize.sql.query import read_sql_table, spark_errors
from featurize.sql.tables import FEATURES, IMAGES, PREDICTIONS, REJECTS, SqlTable, SqlView
from featurize.tables.predictions import LATEST

Engine = Literal["opensearch", "solr"]
SCHEMA_FILES: dict[Engine, str] = {"opensearch": "mapping.json", "solr": "schema.json"}
ID_DIGITS = 40  # hexadecimal digits of the SHA-256: 160 bits
_LEFT_OUT = ("content", "features", "projection")  # not metadata, and too large for a search engine
_OF_MODEL = {"label": "predicted_label"}  # beside `label`, the image's own label
_NOT_OF_MODEL = ("image_id", "path", "label_index", "width", "height")  # the image's own columns have these
_OPENSEARCH = {
    "string": "keyword",
    "boolean": "boolean",
    "tinyint": "byte",
    "smallint": "short",
    "int": "integer",
    "bigint": "long",
    "float": "float",
    "double": "double",
    "date": "date",
    "timestamp": "date",
}
_SOLR = {
    "string": "string",
    "boolean": "boolean",
    "tinyint": "pint",
    "smallint": "pint",
    "int": "pint",
    "bigint": "plong",
    "float": "pfloat",
    "double": "pdouble",
    "date": "pdate",
    "timestamp": "pdate",
}
# Fields by their meaning, not their type. `taken_at` is text in Solr, as most cameras record no time zone and Solr's
# dates need one; ISO 8601 texts sort correctly. Paths can be searched as a whole and by their words.
_OPENSEARCH_OWN: dict[str, dict[str, Any]] = {
    "taken_at": {"type": "date"},
    "location": {"type": "geo_point"},
    "exif": {"type": "flat_object"},
    "path": {"type": "keyword", "fields": {"words": {"type": "text"}}},
}
_SOLR_OWN: dict[str, dict[str, Any]] = {
    "location": {"type": "location"},
    "exif": {"type": "strings"},
    "path_words": {"type": "text_general", "multiValued": False, "stored": False},
}


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        documents: Number of documents.
        files: URLs of the files of documents.
        schema: URL of the mapping or schema.
    """

    documents: int
    files: list[str]
    schema: str


def search_rows(spark: SparkSession, tables: Iterable[SqlTable | SqlView], *, model: str | None = None) -> DataFrame:
    """A row for each image: the metadata of the images table or feature set, joined with a model's predictions.

    Without an images table or feature set, the rows are those of the predictions.

    Args:
        spark: The Spark session.
        tables: The tables to export.
        model: The model of the predictions: a view, or the first digits of a `model_id`; None: the view `latest`, or the only
            model.

    Raises:
        UsageError: There is no table, or both images and features, or predictions of several models and no choice.
    """
    tables = list(tables)
    found = {table.name: table for table in tables if isinstance(table, SqlTable) and table.name != REJECTS}
    views = {view.name: view.value for view in tables if isinstance(view, SqlView)}
    if not found or {IMAGES, FEATURES} <= found.keys():
        raise UsageError(
            "`images`, `features` or `predictions` is required; `images` and `features` cannot be combined."
        )
    predicted = (
        _predicted(spark, found[PREDICTIONS], views.get(model or LATEST, model)) if PREDICTIONS in found else None
    )
    base = next((found[name] for name in (IMAGES, FEATURES) if name in found), None)
    if base is None and predicted is not None:
        return predicted
    frame = read_sql_table(spark, found[IMAGES] if IMAGES in found else found[FEATURES])
    frame = frame.drop(*_LEFT_OUT)
    if predicted is None:
        return frame
    # Equal images have equal predictions, but one image may be at several paths.
    return frame.join(predicted.drop(*_NOT_OF_MODEL[1:]).dropDuplicates(["image_id"]), "image_id", "left")


def write_documents(
    frame: DataFrame, url: str, *, engine: Engine, index: str, rows_per_file: int, overwrite: bool = False
) -> Export:
    """Writes the documents of `search_rows` and the schema to the folder at `url`, which appears complete or not at all.

    Args:
        frame: The rows.
        url: URL of the folder.
        engine: The search engine.
        index: OpenSearch's index, which every line of the bulk API names; for Solr it is in the URL that lines are sent to.
        rows_per_file: Most documents in a file.
        overwrite: Whether to replace what is at `url`.

    Raises:
        UsageError: There is something at `url`.
        JobError: Spark fails to read the tables.
    """
    if storage.exists(url) and not overwrite:
        raise UsageError(f"{url} exists already. Choose another URL, or use `overwrite` (--overwrite).")
    temporary = f"{url}.{uuid4().hex[:8]}.tmp"
    try:
        with spark_errors():
            rows = frame.toLocalIterator()
            names, count = _write_parts(rows, temporary, engine=engine, index=index, rows_per_file=rows_per_file)
        storage.write_json(storage.join_url(temporary, SCHEMA_FILES[engine]), make_schema(frame.schema, engine))
        storage.remove(url)
        storage.move(temporary, url)
    finally:
        with suppress(OSError):
            storage.remove(temporary)
    files = [storage.join_url(url, name) for name in names]
    return Export(count, files, storage.join_url(url, SCHEMA_FILES[engine]))


def make_document(row: Row, engine: Engine) -> dict[str, Any]:
    """A row as a document; values that are null or not finite are left out."""
    document = {name: _value(name, value, engine) for name, value in row.asDict().items()}
    latitude, longitude = document.pop("latitude", None), document.pop("longitude", None)
    if latitude is not None and longitude is not None:
        point = {"lat": latitude, "lon": longitude}
        document["location"] = point if engine == "opensearch" else f"{latitude},{longitude}"
    return {name: value for name, value in document.items() if value is not None}


def document_id(path: str) -> str:
    """The id of the image at `path`."""
    return sha256_bytes(path.encode())[:ID_DIGITS]


def make_schema(schema: StructType, engine: Engine) -> dict[str, Any]:
    """The body that creates an index of OpenSearch, or the commands that add the fields to a collection of Solr.

    Raises:
        UsageError: A column has a type that documents cannot have.
    """
    kinds = {field.name: field.dataType for field in schema}
    if {"latitude", "longitude"} <= kinds.keys():
        kinds = {name: kind for name, kind in kinds.items() if name not in ("latitude", "longitude")}
        kinds["location"] = schema["latitude"].dataType
    if engine == "opensearch":
        fields = {name: _OPENSEARCH_OWN.get(name) or _opensearch_field(name, kind) for name, kind in kinds.items()}
        return {"mappings": {"dynamic": "strict", "properties": fields}}
    added = [{"name": name, **(_SOLR_OWN.get(name) or _solr_field(name, kind))} for name, kind in kinds.items()]
    added.append({"name": "path_words", **_SOLR_OWN["path_words"]})
    return {"add-field": added, "add-copy-field": [{"source": "path", "dest": "path_words"}]}


def _predicted(spark: SparkSession, table: SqlTable, model: str | None) -> DataFrame:
    """The predictions of one model, with `label` renamed."""
    frame = read_sql_table(spark, table)
    if "model_id" in table.partition:
        place = table.partition.index("model_id")
        models = sorted({part.values[place] for part in table.parts})
        if model is None and len(models) > 1:
            raise UsageError(
                f"there are predictions of {len(models)} models; `model` (--model) must choose one: {', '.join(models)}."
            )
        if model is not None:
            chosen = [known for known in models if known.startswith(model)]
            if len(chosen) != 1:
                raise UsageError(f"`model` must be the first digits of one of {', '.join(models)}. Got {model!r}.")
            frame = frame.where(col("model_id") == chosen[0])
    return frame.drop(*_LEFT_OUT).withColumnsRenamed(_OF_MODEL)


def _write_parts(
    rows: Iterator[Row], url: str, *, engine: Engine, index: str, rows_per_file: int
) -> tuple[list[str], int]:
    """Writes the files of documents; returns their names and the number of documents."""
    names: list[str] = []
    count = 0
    while part := list(islice(rows, rows_per_file)):
        names.append(f"part-{len(names):05d}.jsonl")
        lines = [line for row in part for line in _lines(make_document(row, engine), engine, index)]
        _write_lines(storage.join_url(url, names[-1]), lines)
        count += len(part)
    return names, count


def _write_lines(url: str, lines: list[str]) -> None:
    def write(file: IO[bytes]) -> None:
        file.writelines(f"{line}\n".encode() for line in lines)

    storage.write_file(url, write)


def _lines(document: Mapping[str, Any], engine: Engine, index: str) -> Iterator[str]:
    """The lines of a document, each with its line end; the bulk API has two, the action and the document."""
    name = document_id(str(document["path"]))
    if engine == "opensearch":
        yield _json({"index": {"_index": index, "_id": name}})
        yield _json(document)
    else:
        yield _json({"id": name, **document})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _value(name: str, value: Any, engine: Engine) -> Any:
    """A value in the engine's form: times in UTC, EXIF for Solr as ``tag=text``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, date):
        return f"{value.isoformat()}T00:00:00Z"
    if isinstance(value, dict):
        texts = {str(key): str(text) for key, text in sorted(value.items())}
        return texts if engine == "opensearch" else [f"{key}={text}" for key, text in texts.items()]
    if isinstance(value, list):
        return [_value(name, inner, engine) for inner in value]
    return value


def _opensearch_field(name: str, kind: DataType) -> dict[str, Any]:
    """The mapping of a field; OpenSearch has no lists, as any field may have several values."""
    inner = kind.elementType if isinstance(kind, ArrayType) else kind
    return {"type": "flat_object"} if isinstance(inner, MapType) else {"type": _simple(name, inner, _OPENSEARCH)}


def _solr_field(name: str, kind: DataType) -> dict[str, Any]:
    if isinstance(kind, MapType):
        return {"type": "strings"}
    inner = kind.elementType if isinstance(kind, ArrayType) else kind
    return {"type": _simple(name, inner, _SOLR), "multiValued": isinstance(kind, ArrayType)}


def _simple(name: str, kind: DataType, types: Mapping[str, str]) -> str:
    if kind.simpleString() not in types:
        raise UsageError(f"the column {name} of type {kind.simpleString()} cannot be part of a document.")
    return types[kind.simpleString()]
