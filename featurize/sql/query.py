"""Spark SQL over Firn's tables: temporary views of the published files, a query, and its answer."""

import base64
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import reduce
from typing import Any
from uuid import uuid4

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql.functions import broadcast, coalesce, col, lit
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import StringType, StructField, StructType

from featurize import storage
from featurize.building.session import check_file_names
from featurize.errors import JobError, UsageError, first_line
from featurize.foreign_text import CsvWriter
from featurize.sql.tables import CorrectedLabels, SqlTable, SqlView
from featurize.tables.row_groups import read_footer

FORMATS = (".csv", ".parquet")
LITERAL_PATHS = ("__globPaths__", "false")
"""Spark would take a path with brackets, braces or stars for a pattern, and Hadoop's patterns cannot have a colon."""


@dataclass(frozen=True)
class QueryResult:
    """The answer to a query.

    Attributes:
        types: Name and type, as Spark writes it, of each column.
        rows: The first rows.
        is_cut: Whether there are more rows.
    """

    types: list[tuple[str, str]]
    rows: list[Row]
    is_cut: bool


def register_views(spark: SparkSession, tables: Sequence[SqlTable | SqlView]) -> None:
    """Makes a temporary view of each table, which shows exactly the files that are published now."""
    for table in tables:
        if isinstance(table, SqlView):
            frame = spark.table(table.table).where(col(table.column) == table.value)
        else:
            frame = read_sql_table(spark, table)
        frame.createOrReplaceTempView(f"`{table.name.replace('`', '``')}`")


def read_sql_table(spark: SparkSession, table: SqlTable) -> DataFrame:
    """A table as a DataFrame, with corrected labels."""
    columns = from_arrow_schema(table.columns)
    frames = []
    for values in dict.fromkeys(part.values for part in table.parts):
        files = [file for part in table.parts if part.values == values for file in part.files]
        for file in files:
            storage.check_url(file)  # Spark opens them itself
        check_file_names(spark, *(file for file in files if not file.isascii()))
        frame = spark.read.schema(columns).option(*LITERAL_PATHS).parquet(*files)
        for name, value in zip(table.partition, values, strict=True):
            frame = frame.withColumn(name, lit(value))
        frames.append(frame)
    if not frames:
        partition = [StructField(name, StringType()) for name in table.partition]
        return spark.createDataFrame([], StructType([*columns.fields, *partition]))
    frame = reduce(DataFrame.union, frames)
    return frame if table.corrected is None else _corrected(spark, frame, table.corrected)


def _corrected(spark: SparkSession, frame: DataFrame, corrected: CorrectedLabels) -> DataFrame:
    """`frame` with corrected labels, which are few and are sent to every task."""
    indices = {label: index for index, label in enumerate(corrected.classes)}
    rows = [(image_id, label, indices[label]) for image_id, label in corrected.labels.items()]
    last = spark.createDataFrame(rows, "image_id string, _label string, _label_index int")
    names = {"label": coalesce(col("_label"), col("label")), "label_index": coalesce("_label_index", "label_index")}
    joined = frame.join(broadcast(last), "image_id", "left")
    return joined.select(*(names[name].alias(name) if name in names else col(name) for name in frame.columns))


def run_query(spark: SparkSession, query: str) -> DataFrame:
    """The answer to a query, not computed yet.

    Raises:
        UsageError: Spark does not understand it, or there is no such table or column.
    """
    try:
        return spark.sql(query)
    except PySparkException as error:
        raise UsageError(f"the query cannot be run: {first_line(error)}") from error


def fetch(frame: DataFrame, *, limit: int) -> QueryResult:
    """The first `limit` rows of an answer.

    Raises:
        JobError: Spark fails to compute it.
    """
    with spark_errors():
        rows = frame.limit(limit + 1).collect()
    return QueryResult(list(frame.dtypes), rows[:limit], len(rows) > limit)


def write_answer(frame: DataFrame, url: str) -> int:
    """Writes all rows of an answer to one file, complete or not at all; returns their number.

    In CSV lists, maps and structs are JSON, bytes are base64, and null is empty.

    Raises:
        UsageError: `url` ends neither in .csv nor in .parquet.
        JobError: Spark fails to compute it.
    """
    check_output(url)
    with spark_errors():
        return _write_csv(frame, url) if url.endswith(".csv") else _write_parquet(frame, url)


def check_output(url: str) -> None:
    """Checks that an answer can be written to `url`.

    Raises:
        UsageError: It ends in none of `FORMATS`.
    """
    if not url.endswith(FORMATS):
        raise UsageError(f"the URL of the output must end in {' or '.join(FORMATS)}. Got {url!r}.")


def plain_value(value: Any) -> Any:
    """A value of a row in JSON: bytes as base64, times as ISO 8601 in UTC, numbers that are not finite as null."""
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Row):
        return {name: plain_value(inner) for name, inner in value.asDict().items()}
    if isinstance(value, dict):
        return {str(name): plain_value(inner) for name, inner in value.items()}
    return [plain_value(inner) for inner in value] if isinstance(value, list | tuple) else value


def _write_csv(frame: DataFrame, url: str) -> int:
    """Writes row by row as they arrive; where HDFS fails, the answer is computed again."""
    counts = []

    def write(file: Any) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = CsvWriter(text)
        writer.write_row(frame.columns)
        counts.append(0)
        for row in frame.toLocalIterator():
            writer.write_row([_csv_value(value) for value in row])
            counts[-1] += 1
        text.flush()
        text.detach()

    storage.write_file(url, write)
    return counts[-1]


def _csv_value(value: Any) -> Any:
    plain = plain_value(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, list | dict) else plain


def _write_parquet(frame: DataFrame, url: str) -> int:
    """Lets Spark write into a folder beside `url`, and moves the one file in it to `url`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = f"{url}.{uuid4().hex[:8]}.tmp"
    try:
        frame.coalesce(1).write.parquet(folder)
        files = [file for file in storage.list_files(folder) if file.endswith(".parquet")]
        if files:
            storage.replace(files[0], url)
        else:  # an answer without partitions
            schema = to_arrow_schema(frame.schema)
            storage.write_file(url, lambda file: pq.write_table(pa.table(schema.empty_table()), file))
    finally:
        storage.remove(folder)
    return int(read_footer(url).num_rows)


@contextmanager
def spark_errors(what: str = "the query failed") -> Iterator[None]:
    """Turns Spark's error into one line, which begins with `what`, where a query fails while it is computed."""
    try:
        yield
    except Py4JJavaError as error:
        cause = error.java_exception
        while cause.getCause() is not None:
            cause = cause.getCause()
        message = str(cause.getMessage()).strip()
        raise JobError(f"{what}: {message.splitlines()[0] if message else cause.toString()}") from error
    except PySparkException as error:
        raise JobError(f"{what}: {first_line(error)}") from error
