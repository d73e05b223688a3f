"""GPUs that Spark assigns to a task are those TensorFlow may see. Spark takes a script's word for what a machine has."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.project import ROOT
from helpers.services.processes import java_environment
from helpers.services.spark_cluster import SPARK_HOME

pytestmark = [pytest.mark.cluster, pytest.mark.spark, pytest.mark.slow]
PROGRAM = """
import json, os, sys
import pyarrow as pa
from pyspark.sql import SparkSession
from featurize.building.spark_jobs import run_tasks
from helpers.tables.building import recipe
from featurize.jobs.run import featurize
from pathlib import Path

spark = SparkSession.builder.getOrCreate()
photos, out, backbone = map(Path, sys.argv[1:])
result, _ = featurize(spark, recipe(photos, out, backbone))


def look(batches):
    for batch in batches:
        yield pa.RecordBatch.from_pydict({"seen": [os.environ.get("CUDA_VISIBLE_DEVICES")]})


seen = [row["seen"] for row in run_tasks(spark, look, tasks=1)]
print(json.dumps({"rows": result.added, "seen": seen}))
"""


def test_a_worker_sees_the_gpus_that_its_task_was_given(photos: Path, mean_backbone: Path, tmp_path: Path) -> None:
    script = tmp_path / "gpus.sh"
    script.write_text("""echo '{"name": "gpu", "addresses": ["2", "5"]}'\n""")
    script.chmod(0o755)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    settings = {
        "spark.worker.resource.gpu.amount": 2,
        "spark.worker.resource.gpu.discoveryScript": script,
        "spark.executor.resource.gpu.amount": 2,
        "spark.task.resource.gpu.amount": 2,
        "spark.ui.enabled": "false",
        "spark.pyspark.python": sys.executable,
    }
    command = [str(SPARK_HOME / "bin" / "spark-submit"), "--master", "local-cluster[1,1,1024]"]
    command += [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
    work, was_there = SPARK_HOME / "work", (SPARK_HOME / "work").exists()
    done = subprocess.run(
        [*command, str(program), str(photos), str(tmp_path / "out"), str(mean_backbone)],
        env={**java_environment(), "SPARK_HOME": str(SPARK_HOME), "PYTHONPATH": str(ROOT / "tests")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    if not was_there:
        shutil.rmtree(work, ignore_errors=True)  # where a local cluster has its executors, whatever it is told
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"rows": 60, "seen": ["2,5"]}
