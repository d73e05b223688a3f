"""What `test_delta_spark` runs in a process of its own: Delta Lake for Spark reads a table, and cleans it up.

``python delta_program.py JARS TABLE`` prints one JSON object. Whatever cleaning takes away, Firn must not need.
"""

import json
import sys

from pyspark.sql import SparkSession


def main(jars: str, table: str) -> None:
    spark = (
        SparkSession.builder.master("local[1]")
        .config("spark.jars", jars)
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .config("spark.databricks.delta.retentionDurationCheck.enabled", "false")
        .config("spark.sql.shuffle.partitions", "1")
        .getOrCreate()
    )
    now, first = (
        spark.read.format("delta").option("versionAsOf", version).load(table)
        if version is not None
        else spark.read.format("delta").load(table)
        for version in (None, 0)
    )
    history = spark.sql(f"DESCRIBE HISTORY delta.`{table}`")
    answer = {
        "splits": {row["split"]: row["count"] for row in now.groupBy("split").count().collect()},
        "types": dict(now.dtypes),
        "paths": sorted(row["path"] for row in now.select("path").collect()),
        "first": first.count(),
        "operations": [row["operation"] for row in history.select("operation").collect()],
    }
    spark.sql(f"VACUUM delta.`{table}` RETAIN 0 HOURS")
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
