"""Predictions for readers: temporary views of Spark, and the statements that make tables and views of them elsewhere."""

from collections.abc import Mapping
from functools import reduce
from typing import Literal, get_args

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import lit

from featurize import storage
from featurize.errors import UsageError
from featurize.manifests import PredictionsManifest
from finetune.prediction_views import ALL, PARTITION, PublishedViews, read_views

Dialect = Literal["spark", "hive", "duckdb"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
SPARK_COLUMNS = {
    "image_id": "STRING",
    "path": "STRING",
    "label": "STRING",
    "probability": "FLOAT",
    "top_labels": "ARRAY<STRING>",
    "top_probabilities": "ARRAY<FLOAT>",
    "predicted_at": "TIMESTAMP",
    "reason": "STRING",
}
"""The columns of the Parquet files as Spark and Hive name their types."""


def register_views(spark: SparkSession, output: str) -> list[str]:
    """Registers temporary views on the predictions at `output`: `predictions` of all models, `latest`, and one for each alias.

    They show what is published at this moment; call it again to see what has come since.

    Returns:
        Their names. Those of aliases that are no plain words must be quoted with backticks in SQL.

    Raises:
        UsageError: there are no predictions.
    """
    published = read_views(output)
    frames = {
        model_id: read_partition(spark, published.url, manifest) for model_id, manifest in published.manifests.items()
    }
    views = {ALL: reduce(DataFrame.unionByName, frames.values())}
    views |= {name: frames[model_id] for name, model_id in published.views.by_name().items()}
    for name, frame in views.items():
        frame.createOrReplaceTempView(f"`{name}`")
    return list(views)


def read_partition(spark: SparkSession, output: str, manifest: PredictionsManifest) -> DataFrame:
    """The published predictions of one model, with the column `model_id`."""
    folder = storage.join_url(output, f"{PARTITION}{manifest.model_id}")
    columns = ", ".join(f"{name} {kind}" for name, kind in SPARK_COLUMNS.items())
    files = [storage.join_url(folder, file.path) for file in manifest.files]
    return spark.read.schema(columns).parquet(*files).withColumn("model_id", lit(manifest.model_id))


def make_ddl(output: str, dialect: Dialect) -> str:
    """The statements that make the table `predictions`, the view `latest` and one for each alias.

    Args:
        dialect: "spark" for temporary views of Spark SQL, "hive" for external tables of Hive, Impala, or Spark with a metastore,
            "duckdb".

    Raises:
        UsageError: there are no predictions, or the dialect is another.
    """
    if dialect not in DIALECTS:
        raise UsageError(f"`--print-ddl` must be one of {', '.join(DIALECTS)}. Got {dialect!r}.")
    published = read_views(output)
    tables = {"spark": _spark_table, "hive": _hive_table, "duckdb": _duckdb_table}[dialect](published)
    return "\n".join(f"{statement};" for statement in (*tables, *_views(published, dialect)))


def _spark_table(published: PublishedViews) -> list[str]:
    parts = [
        f"SELECT *, {_text(model_id)} AS model_id FROM parquet.`{_folder(published.url, model_id).replace('`', '``')}`"
        for model_id in published.manifests
    ]
    return [f"CREATE OR REPLACE TEMPORARY VIEW {ALL} AS\n  " + "\n  UNION ALL ".join(parts)]


def _hive_table(published: PublishedViews) -> list[str]:
    columns = ", ".join(f"{name} {kind}" for name, kind in SPARK_COLUMNS.items())
    return [
        f"CREATE EXTERNAL TABLE IF NOT EXISTS {ALL} ({columns})\n  PARTITIONED BY (model_id STRING) STORED AS PARQUET\n"
        f"  LOCATION {_text(published.url)}",
        *(
            f"ALTER TABLE {ALL} ADD IF NOT EXISTS PARTITION (model_id = {_text(model_id)})\n"
            f"  LOCATION {_text(_folder(published.url, model_id))}"
            for model_id in published.manifests
        ),
    ]


def _duckdb_table(published: PublishedViews) -> list[str]:
    pattern = storage.join_url(published.url, f"{PARTITION}*", "data", "*.parquet").removeprefix("file://")
    text = "'" + pattern.replace("'", "''") + "'"
    read = f"read_parquet({text}, hive_partitioning = true, hive_types = {{'model_id': VARCHAR}})"
    return [f"CREATE OR REPLACE VIEW {ALL} AS SELECT * FROM {read}"]


def _views(published: PublishedViews, dialect: Dialect) -> list[str]:
    kind = {"spark": "TEMPORARY VIEW", "hive": "VIEW", "duckdb": "VIEW"}[dialect]
    quote = '"' if dialect == "duckdb" else "`"
    views: Mapping[str, str] = published.views.by_name()
    return [
        f"CREATE OR REPLACE {kind} {quote}{name}{quote} AS SELECT * FROM {ALL} WHERE model_id = {_text(model_id)}"
        for name, model_id in views.items()
    ]


def _folder(url: str, model_id: str) -> str:
    return storage.join_url(url, f"{PARTITION}{model_id}", "data")


def _text(value: str) -> str:
    """A literal of Spark SQL and of HiveQL. Paths with quotes need them escaped, digests never do."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
