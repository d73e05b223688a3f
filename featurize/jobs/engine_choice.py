"""What computes a backbone: measured once on a processor of the kind that the workers have, and kept for the next runs."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from pydantic import TypeAdapter
from pyspark import SparkFiles
from pyspark.sql import SparkSession

from featurize.backbones import kept
from featurize.backbones.backbone import Decision, OpenedBackbone, decide_unmeasured
from featurize.backbones.measure import NO_BFLOAT16, list_candidates, measure_engines, ways_of
from featurize.building.session import is_local
from featurize.building.spark_jobs import run_tasks
from featurize.building.starting_session import StartingSession, ready_session
from featurize.building.worker import worker_threads
from featurize.digests import settings_digest
from featurize.engines.engine import NAMES, Engine, can_export, version_of
from featurize.engines.measurement import Measurement, fastest_first
from featurize.engines.precision import Precision
from featurize.errors import JobError
from featurize.jobs.feature_columns import networks_of
from featurize.progress import stage
from featurize.recipes.backbone_section import BackboneSettings
from featurize.recipes.recipe import FeaturizeRecipe

_logger = logging.getLogger(__name__)
_MEASURED, _CHOSEN = "engines", "chosen"
_MEASUREMENTS: TypeAdapter[tuple[Measurement, ...]] = TypeAdapter(tuple[Measurement, ...])
_ENGINE: TypeAdapter[Engine] = TypeAdapter(Engine)
_ENVIRONMENT = ("ONEDNN_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS", "OMP_NUM_THREADS")
_PRECISIONS: dict[Engine, tuple[Precision, ...]] = {
    "tensorflow": ("float32", "bfloat16"),
    "openvino": ("float32", "bfloat16"),
    "onnxruntime": ("float32",),
}


class EngineChoice:
    """Decides for `prepare_backbone`: the engine that was fastest on the workers' processor among those with the same features.

    Args:
        spark: the session of the job, which may still be starting; it is waited for once a network is open.
    """

    def __init__(self, spark: SparkSession | StartingSession) -> None:
        self._spark = spark

    def __call__(self, opened: OpenedBackbone, settings: BackboneSettings) -> Decision:
        """The decision for one backbone.

        Raises:
            JobError: no engine computes it.
        """
        usable = opened.engines()
        is_open = settings.engine == "auto" and len(usable) > 1
        unmeasured = None if is_open else decide_unmeasured(opened, settings)
        session = ready_session(self._spark)
        key = _key_of(opened, usable, session)
        found = kept.find_document(_MEASURED, key, _MEASUREMENTS.validate_python)
        if unmeasured is not None:
            return _as_measured(unmeasured, found or (), settings)
        if found is None:
            stage(f"measuring {', '.join(NAMES[engine] for engine in usable)} for {opened.spec.name}, once")
            measured = self._measure(session, opened)
            kept.keep_document(_MEASURED, key, [one.as_dict() for one in measured])
        else:
            measured = found
        decision = decide(measured, settings)
        kept.keep_document(_CHOSEN, _name_of(settings), decision.engine)
        return decision

    def _measure(self, session: SparkSession, opened: OpenedBackbone) -> tuple[Measurement, ...]:
        candidates, files = list_candidates(opened, _PRECISIONS.__getitem__)
        for path in files.values():
            session.sparkContext.addFile(str(path))
        spec = opened.spec

        def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for _ in batches:
                paths = {one.file: Path(SparkFiles.get(one.file)) for one in candidates}
                measured = measure_engines(spec, candidates, paths, threads=worker_threads())
                yield pa.RecordBatch.from_arrays(
                    [pa.array([json.dumps([one.as_dict() for one in measured])])], ["text"]
                )

        rows = run_tasks(session, work, tasks=1)
        return tuple(Measurement(**one) for row in rows for one in json.loads(row["text"]))


def _key_of(opened: OpenedBackbone, usable: Sequence[Engine], session: SparkSession) -> str:
    """Digest of all that the speed of a backbone depends on."""
    processor, threads = worker_processor(session)
    return settings_digest(
        {
            "backbone": opened.spec.preparation_id,
            "processor": processor,
            "threads": threads,
            "versions": {engine: version_of(engine) for engine in usable},
            "ways": [list(way) for way in ways_of("openvino", threads)],
            "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        }
    )


def _as_measured(decision: Decision, measured: Sequence[Measurement], settings: BackboneSettings) -> Decision:
    """A decision that the recipe or rows that exist have made, computed in the way that was fastest if that is known here."""
    same = (one for one in measured if (one.engine, one.precision) == (decision.engine, decision.precision))
    fastest = next((one for one in same if one.error is None), None)
    if fastest is None:
        return decision
    return replace(decision, batch_size=settings.batch_size or fastest.batch_size, per_core=fastest.per_core)


def likely_engine(settings: BackboneSettings) -> Engine | None:
    """The engine that workers will probably need, known at the start; None if it will be measured, or none is needed."""
    if settings.name == "pixels":
        return None
    if settings.engine != "auto":
        return settings.engine
    chosen = kept.find_document(_CHOSEN, _name_of(settings), _ENGINE.validate_python)
    if chosen is not None:
        return chosen
    return None if can_export() else "tensorflow"


def engine_of_workers(recipe: FeaturizeRecipe) -> Engine | None:
    """The engine that workers will probably need first, as `likely_engine` knows it.

    Raises:
        UsageError: of several columns of one network, one has no layer.
    """
    engines = [likely_engine(settings) for settings, _ in networks_of(recipe.columns)]
    return next((engine for engine in engines if engine is not None), None)


def worker_processor(session: SparkSession) -> tuple[str, int]:
    """The model of the workers' processor, and the number of cores of a task."""
    if is_local(session):
        return _processor(), max(1, int(session.sparkContext.getConf().get("spark.task.cpus", "1") or 1))

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            yield pa.RecordBatch.from_arrays(
                [pa.array([_processor()]), pa.array([worker_threads()])], ["name", "threads"]
            )

    row = run_tasks(session, work, tasks=1)[0]
    return str(row["name"]), int(row["threads"])


def _processor() -> str:
    """The model of this machine's processor with its instructions, as far as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    wanted = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    return "; ".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def decide(measured: tuple[Measurement, ...], settings: BackboneSettings) -> Decision:
    """The fastest of what was measured, in a precision that the recipe allows, whose features are those of the reference.

    Where the recipe asks for bfloat16, features in bfloat16 count, however far they are from float32.

    Raises:
        JobError: there is none; the message has the reasons.
    """
    allowed = [one for one in measured if settings.precision in ("auto", one.precision)]
    ordered = fastest_first(allowed, asked=settings.precision)
    if not ordered or not ordered[0].is_usable(settings.precision):
        reasons = (
            "; ".join(f"{NAMES[one.engine]} in {one.precision}: {_fault(one)}" for one in allowed) or "none was tried"
        )
        raise JobError(f"no engine computes {settings.name} in {settings.precision} precision here: {reasons}.")
    best = ordered[0]
    for one in ordered:
        _logger.debug(
            "%s %s: %s images/s, cosine %s %s", one.engine, one.precision, one.images_per_s, one.cosine, one.error
        )
    compared = [
        one for one in measured if one.precision == "bfloat16" and one.error is None and one.engine == best.engine
    ]
    cosine = compared[0].cosine if compared else None
    others = [one for one in measured if one not in allowed] if settings.precision == "int8" else []
    shown = tuple(one for one in (*ordered, *others) if one.error != NO_BFLOAT16)
    size = settings.batch_size or best.batch_size
    return Decision(best.engine, best.precision, size, cosine, shown, best.per_core)


def _fault(one: Measurement) -> str:
    return one.error or f"mean cosine {one.cosine:g} to the reference"


def _name_of(settings: BackboneSettings) -> str:
    return settings_digest(settings.model_dump(exclude={"quantized"}))
