"""The engine of a run: chosen by measurement once, named in the manifest, kept by the rows that exist."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.networks import settings, small_network
from helpers.tables.building import assert_same_rows, read_rows, recipe, stacked
from pyspark.sql import SparkSession

from featurize.backbones import measure
from featurize.backbones.backbone import prepare_backbone
from featurize.backbones.keras_backbone import KerasBackbone
from featurize.backbones.measure import Candidate, measure_engines, ways_of
from featurize.backbones.spec import BackboneSpec
from featurize.digests import sha256_file
from featurize.engines.engine import ENGINES
from featurize.engines.measurement import Measurement, fastest_first
from featurize.errors import JobError, UsageError
from featurize.jobs.engine_choice import EngineChoice, decide, likely_engine, worker_processor
from featurize.jobs.run import featurize
from featurize.recipes.backbone_section import BackboneSettings
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import read_features_manifest

pytestmark = pytest.mark.spark


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRN_CACHE", str(tmp_path / "cache"))


def run(spark: SparkSession, photos: Path, folder: Path, backbone: Path, **changes: Any) -> FeaturesManifest:
    featurize(spark, recipe(photos, folder, backbone, **changes))
    return read_features_manifest(str(folder))


def measurement(engine: Any, rate: float, **changes: Any) -> Measurement:
    return Measurement(
        **{"engine": engine, "precision": "float32", "batch_size": 8, "images_per_s": rate, "cosine": 1.0, **changes}
    )


def test_where_cores_are_faster_alone_they_compute_alone_also_in_batches_that_the_recipe_sets() -> None:
    measured = (measurement("openvino", 300.0, batch_size=32, per_core=4), measurement("tensorflow", 100.0))
    asked = BackboneSettings(name="VGG16")
    decided = decide(measured, asked)
    assert (decided.engine, decided.batch_size, decided.per_core) == ("openvino", 32, 4)
    decided = decide(measured, asked.model_copy(update={"batch_size": 64}))
    assert (decided.batch_size, decided.per_core) == (64, 4)


def test_every_engine_is_tried_with_all_cores_together_first_and_tensorflow_only_so() -> None:
    assert ways_of("tensorflow", 2) == [(8, None), (32, None)]
    assert ways_of("openvino", 2) == [(8, None), (32, None), (32, 4), (32, 16)]
    assert ways_of("onnxruntime", 12) == [(8, None), (32, None), (48, 4), (192, 16)]


def test_the_fastest_engine_with_the_same_features_is_taken_and_named(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    changes = {"engine": "auto", "batch_size": None, "layer": "mean"}
    made = run(spark, photos, tmp_path / "set", small_backbone, **changes)
    tried = [Measurement(**one) for one in made.backbone["engines"]]
    assert {one.engine for one in tried} == set(ENGINES)
    assert all(one.cosine > 0.9999 and one.images_per_s > 0 for one in tried if one.precision == "float32")
    best = tried[0]
    assert (made.backbone["engine"], made.backbone["precision"]) == (best.engine, "float32")
    assert best.images_per_s == max(one.images_per_s for one in tried if one.precision == "float32")
    assert made.backbone["batch_size"] == best.batch_size
    assert made.versions["onnxruntime"]


def test_what_was_measured_is_not_measured_again_and_tensorflow_is_not_needed_again(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KerasBackbone, "engines", lambda self: ("openvino", "onnxruntime"))  # whichever is faster
    changes = {"engine": "auto", "layer": "mean"}
    first = run(spark, photos, tmp_path / "first", small_backbone, **changes)
    monkeypatch.setattr(EngineChoice, "_measure", None)
    monkeypatch.setattr("featurize.backbones.keras_network.build_network", None)
    second = run(spark, photos, tmp_path / "second", small_backbone, **changes)
    assert second.identity == first.identity
    assert second.backbone["engines"] == first.backbone["engines"]
    assert_same_rows(read_rows(tmp_path / "second"), read_rows(tmp_path / "first"))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_every_engine_gives_the_features_of_tensorflow_and_the_same_rows(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path, engine: str
) -> None:
    ours = run(spark, photos, tmp_path / "ours", small_backbone, engine=engine)
    reference = run(spark, photos, tmp_path / "reference", small_backbone)
    assert (ours.preparation_id, ours.rows) == (reference.preparation_id, reference.rows)
    assert ours.identity != reference.identity
    one, other = read_rows(tmp_path / "ours"), read_rows(tmp_path / "reference")
    np.testing.assert_allclose(stacked(one), stacked(other.loc[one.index]), rtol=1e-4, atol=1e-5)


def test_rows_that_exist_decide_what_computes_further_ones(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    there = run(spark, photos, tmp_path / "set", small_backbone, engine="onnxruntime")
    again = run(spark, photos, tmp_path / "set", small_backbone, engine="auto", precision="auto")
    assert (again.identity, again.backbone["engine"]) == (there.identity, "onnxruntime")
    with pytest.raises(UsageError, match=r"backbone.engine: existing 'onnxruntime', requested 'openvino'"):
        run(spark, photos, tmp_path / "set", small_backbone, engine="openvino")


def test_an_engine_that_is_named_computes_in_the_way_that_was_measured(
    spark: SparkSession, small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(small_backbone, layer="mean", preprocessing="none", engine="onnxruntime")
    opened = KerasBackbone(asked, tmp_path)
    choose = EngineChoice(spark)
    assert choose(opened, asked).per_core is None
    figures = [measurement("openvino", 90), measurement("onnxruntime", 80, batch_size=40, per_core=4)]
    monkeypatch.setattr(EngineChoice, "_measure", lambda *_: tuple(figures))
    assert choose(opened, asked.model_copy(update={"engine": "auto"})).engine == "openvino"
    known = choose(opened, asked)
    assert (known.engine, known.batch_size, known.per_core) == ("onnxruntime", 40, 4)
    assert choose(opened, asked.model_copy(update={"batch_size": 7})).batch_size == 7


def test_workers_import_no_tensorflow_where_another_engine_computes(photos: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import json, sys
import featurize
from featurize.building.session import make_session
from featurize.building.spark_jobs import run_tasks

session = make_session("engines")
def loaded(batches):
    import pyarrow, sys
    for batch in batches:
        yield pyarrow.RecordBatch.from_arrays([pyarrow.array(["tensorflow" in sys.modules])], ["there"])
for engine in ("onnxruntime", "tensorflow"):
    recipe = {{
        "images": {{"source": {str(photos)!r}, "max_reject_fraction": 1.0}},
        "backbone": {{"name": sys.argv[1], "preprocessing": "none", "precision": "float32", "engine": engine}},
        "features": {{"url": {str(tmp_path)!r} + "/" + engine}},
    }}
    featurize.run(recipe, spark=session)
    rows = run_tasks(session, loaded, tasks=1)
    print(json.dumps(rows[0]["there"]))
session.stop()
"""
    )
    ended = subprocess.run(
        [sys.executable, str(program), str(small_network(tmp_path))],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert [json.loads(line) for line in ended.stdout.split()] == [False, True]


# Measuring


def test_an_engine_that_cannot_compute_the_network_is_left_out_with_its_reason(
    spark: SparkSession, small_backbone: Path, tmp_path: Path
) -> None:
    prepared = prepare_backbone(settings(small_backbone, preprocessing="none", engine="onnxruntime"), tmp_path)
    assert prepared.path is not None
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(prepared.path.read_bytes()[:100])
    candidates = [
        Candidate("onnxruntime", "float32", "whole", sha256_file(prepared.path)),
        Candidate("openvino", "float32", "damaged", sha256_file(damaged)),
    ]
    measured = measure_engines(prepared.spec, candidates, {"whole": prepared.path, "damaged": damaged}, threads=1)
    assert [one.engine for one in measured] == ["onnxruntime", "openvino"]
    assert (measured[0].error, measured[0].is_faithful, measured[1].is_faithful) == (None, True, False)
    assert measured[1].error is not None
    assert "damaged.onnx" in measured[1].error


def test_a_process_that_crashes_is_a_reason(small_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_RUN", "import os; os.abort()")
    spec = BackboneSpec("n", None, None, None, None, "none", "", 8, 8, 3, "float32", (8,), "float32")
    candidates = [Candidate("tensorflow", "float32", "file", "")]
    (one,) = measure_engines(spec, candidates, {"file": small_backbone}, threads=1)
    assert one.error == "exit status -6"


def test_the_fastest_comes_first_among_those_with_the_same_features() -> None:
    fast = measurement("openvino", 100, precision="bfloat16", cosine=0.99)
    slow, slower = measurement("onnxruntime", 20), measurement("tensorflow", 10)
    odd = measurement("openvino", 50, cosine=0.9995)  # float32, but not the same
    broken = measurement("openvino", 0, error="crashed")
    assert fastest_first([broken, slower, fast, odd, slow])[:2] == (slow, slower)


def test_bfloat16_that_the_recipe_asks_for_is_taken_however_far_it_is_from_float32() -> None:
    far = measurement("openvino", 50, precision="bfloat16", cosine=0.99)
    near = measurement("tensorflow", 5)
    assert decide((near, far), settings("VGG16", engine="auto", precision="bfloat16")).engine == "openvino"
    assert decide((near, far), settings("VGG16", engine="auto", precision="auto")).engine == "tensorflow"
    missing = measurement("openvino", 0, precision="bfloat16", cosine=0.0, error=measure.NO_BFLOAT16)
    with pytest.raises(JobError, match="the processor has no bfloat16"):
        decide((near, missing), settings("VGG16", engine="auto", precision="bfloat16"))


def test_where_no_engine_is_faithful_the_run_ends_with_the_reasons(spark: SparkSession, tmp_path: Path) -> None:
    asked = settings("VGG16", precision="auto", engine="auto")
    bad = (measurement("openvino", 0, error="it crashed"), measurement("onnxruntime", 3, cosine=0.5))
    with pytest.raises(
        JobError, match=r"no engine computes VGG16.*OpenVINO in float32: it crashed; ONNX Runtime.*0\.5"
    ):
        decide(bad, asked)
    decision = decide((measurement("openvino", 9, batch_size=8), *bad), asked)
    assert (decision.engine, decision.batch_size) == ("openvino", 8)
    assert decide((measurement("openvino", 9), *bad), settings("VGG16", engine="auto", batch_size=5)).batch_size == 5


def test_workers_are_warmed_up_for_the_engine_that_they_will_need(spark: SparkSession) -> None:
    assert likely_engine(settings("VGG16", engine="onnxruntime")) == "onnxruntime"
    assert likely_engine(settings("VGG16", engine="auto")) is None  # it will be measured, by processes of their own
    assert likely_engine(settings("pixels", height=4, width=4)) is None


def test_the_processor_of_the_workers_is_known_with_their_cores(spark: SparkSession) -> None:
    name, threads = worker_processor(spark)
    assert name
    assert threads == int(spark.sparkContext.getConf().get("spark.task.cpus") or 1)
