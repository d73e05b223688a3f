"""What `test_cluster` submits: a model as a function of SQL, beside the views on what it has predicted.

``spark-submit sql_program.py MODEL IMAGES PREDICTIONS`` prints how many images have a prediction, and of how many the function
says the same.
"""

import json
import sys

from pyspark.sql import SparkSession

from finetune.prediction.predict import register, register_views

QUERY = """
    SELECT count(*) AS images, count_if(now.label = latest.label AND abs(now.probability - latest.probability) < 1e-5) AS same
    FROM latest JOIN (SELECT path, classify(content) AS now FROM files) AS files
    ON regexp_extract(latest.path, '[^/]+/[^/]+$', 0) = regexp_extract(files.path, '[^/]+/[^/]+$', 0)
"""


def main(model: str, images: str, predictions: str) -> None:
    spark = SparkSession.builder.getOrCreate()
    register(spark, "classify", model)
    register_views(spark, predictions)
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(images)
    files.createOrReplaceTempView("files")
    print(json.dumps(spark.sql(QUERY).first().asDict()))  # type: ignore[union-attr]


if __name__ == "__main__":
    main(*sys.argv[1:])
