"""The Scala of docs/analysts.md, run as it stands by the spark-shell that PySpark brings."""

import os
import re
import subprocess
from pathlib import Path

import pyspark
import pytest
from helpers.project import ROOT
from helpers.services.fetching import fetched
from helpers.tables.sql_sets import write_features

HOME = Path(str(pyspark.__file__)).parent
EXTENSION = "spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension"
CATALOG = "spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog"
LOOK = """
println("ROWS " + features.count + " " + features.columns.mkString(","))
features.groupBy("split").count.orderBy("split").collect.foreach(row => println("SPLIT " + row.mkString(" ")))
"""


@pytest.mark.spark
@pytest.mark.slow
def test_a_scala_shell_reads_a_feature_set_in_one_line(tmp_path: Path) -> None:
    document = (ROOT / "docs" / "analysts.md").read_text()
    (program,) = re.findall(r"```scala\n(.*?)```", document, re.DOTALL)
    write_features(tmp_path / "runs/flowers/features", rows=60)  # with files beside it that do not count
    settings = ("spark.ui.enabled=false", EXTENSION, CATALOG, "spark.databricks.delta.snapshotPartitions=1")
    jars = ",".join(map(str, fetched("delta_jars.py")))
    ended = subprocess.run(
        [
            *(str(HOME / "bin" / "spark-shell"), "--master", "local[1]", "--jars", jars),
            *(part for setting in settings for part in ("--conf", setting)),
        ],
        input=program + LOOK,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "SPARK_HOME": str(HOME), "SPARK_LOCAL_IP": "127.0.0.1"},
    )
    columns = "image_id,path,label,label_index,width,height,features,split"
    assert re.findall(r"^ROWS .*", ended.stdout, re.MULTILINE) == [f"ROWS 60 {columns}"], ended.stdout + ended.stderr
    assert re.findall(r"^SPLIT .*", ended.stdout, re.MULTILINE) == [
        "SPLIT test 12",
        "SPLIT train 36",
        "SPLIT validation 12",
    ]
