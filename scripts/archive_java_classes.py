"""Archives the Java classes that Spark loads in a small job, so that later sessions start faster: see `featurize.java`.

    .venv/bin/python scripts/archive_java_classes.py

Writes about 120 MB into .venv/share/firn. Does nothing where Java is not version 17.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from featurize.building.session import make_session
from featurize.java import ARCHIVE_VERSION, class_archive, find_java

_WRITE = "-XX:ArchiveClassesAtExit="


def _pass_on(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield from batches


def run_job(folder: Path) -> None:
    """Uses what Firn's jobs use of Spark: Python workers, Parquet, SQL."""
    session = make_session("archive of classes")
    table = str(folder / "table")
    session.range(0, 100, 1, 2).mapInArrow(_pass_on, "id long").write.parquet(table)
    session.read.parquet(table).createOrReplaceTempView("rows")
    session.sql("select id % 3 as part, count(*) as n from rows group by id % 3 order by part").collect()
    session.stop()


def main() -> None:
    """Runs the job in a process whose Java writes the archive when it ends; it takes its place once it is complete."""
    if sys.argv[1:]:
        run_job(Path(sys.argv[1]))
        return
    if find_java() != ARCHIVE_VERSION:
        return
    archive = class_archive()
    archive.unlink(missing_ok=True)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        written = Path(folder, archive.name)
        # Java ends after the program does, and holds its standard output until then.
        ended = subprocess.run(
            [sys.executable, __file__, folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SPARK_SUBMIT_OPTS": f"{_WRITE}{written} -Xlog:disable"},
            text=True,
            check=False,
        )
        if ended.returncode or not written.exists():
            raise SystemExit(f"no archive of Java classes was written:\n{ended.stdout}")
        written.rename(archive)


if __name__ == "__main__":
    main()
