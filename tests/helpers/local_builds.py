"""Feature sets of pixels built by the code of `featurize run`, with its workers in this process, one after the other."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark import SparkFiles

from featurize.backbones.backbone import decide_unmeasured
from featurize.building import build, missing_work
from featurize.building.plan import plan_shards, write_plan
from featurize.jobs import add_column, run
from featurize.recipes.recipe import FractionSplit
from featurize.sources.opening import open_source
from featurize.tables import publication
from featurize.tables.corrections import read_corrections
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.publication import read_manifest, read_published_features
from helpers.tables.building import read_rows
from helpers.tables.worker_runs import as_spark_task, make_task


class LocalFiles:
    """In place of a session: the files that are sent to executors are where they are."""

    def __init__(self) -> None:
        self.sparkContext, self.paths = self, dict[str, str]()
        self.master = "local[2]"

    def addFile(self, path: str) -> None:  # noqa: N802
        self.paths[Path(path).name] = path

    def newSession(self) -> "LocalFiles":  # noqa: N802
        return self


def without_spark(patch: pytest.MonkeyPatch) -> Any:
    """From here on jobs run their workers in this process; returns what they take for a session."""
    session = LocalFiles()

    def run_plan(
        spark: Any, plan_url: str, *, rows: pa.Table, make_worker: Any, shards: Any = None, **_: Any
    ) -> list[dict[str, Any]]:
        shards = plan_shards(rows, slots=2) if shards is None else shards
        write_plan(plan_url, rows, shards)
        worker, made = make_worker(None), list[dict[str, Any]]()
        for number in range(len(shards)):
            with as_spark_task(attempt=number):
                batch = pa.RecordBatch.from_arrays([pa.array([number], pa.int64())], names=["id"])
                made += [row for answer in worker([batch]) for row in answer.to_pylist()]
        return made

    for module in (build, missing_work, add_column):
        patch.setattr(module, "run_plan", run_plan)
    patch.setattr(build, "concurrent_tasks", lambda spark: 2)
    patch.setattr(run, "EngineChoice", lambda spark: decide_unmeasured)
    patch.setattr(SparkFiles, "get", session.paths.__getitem__)
    return session


def run_on(images: Path, folder: Path | str) -> None:
    """Makes the feature set of a folder of images, or adds what it lacks."""
    source = open_source(str(images), FractionSplit(train=0.5, validation=0.2, test=0.3, seed=1))
    details = {
        "preparation_id": "0" * 64,
        "backbone": {"name": "pixels"},
        "feature_shape": [4, 5, 3],
        "feature_dtype": "uint8",
        "rows_per_group": 3,
        "recipe": {},
        "lineage": {},
    }
    build.build_table(
        None,  # type: ignore[arg-type]
        source,
        str(folder),
        manifest_type=FeaturesManifest,
        settings={"table": "features", "source": source.settings, "classes": list(source.classes)},
        details=details,
        task=make_task(source),
        max_reject_fraction=None,
        decode_timeout_s=60.0,
    )


def look(folder: Path | str) -> dict[str, Any] | None:
    """All that another process reads of a feature set; None where there is none."""
    publication._cached.clear()
    if read_manifest(str(folder)) is None:
        return None
    manifest = read_published_features(str(folder))
    rows = read_rows(folder)
    log = read_corrections(str(folder))
    return {
        "rows": rows.drop(columns="features", errors="ignore").to_dict("index"),
        "features": dict(zip(rows.index, rows["features"], strict=True)) if "features" in rows else None,
        "counts": (manifest.rows, manifest.rejects, manifest.content_digest),
        "rejects": sum(file.rows for file in manifest.reject_files),
        "corrections": (log.count, sorted(log.last().to_pylist(), key=str)),
    }
