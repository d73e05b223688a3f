"""Further columns for a feature set that exists, or columns anew for some of its rows. Rows, splits and labels stay as they are.

As in a run, shards are made in the staging folder, committed one by one, and published whole by the manifest; what a killed job
finished is taken over by the next one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from featurize import storage
from featurize.backbones.rebuild import decoding_of
from featurize.backbones.spec import PreparedBackbone
from featurize.building import staging
from featurize.building.build import BuildResult
from featurize.building.spark_jobs import run_plan
from featurize.building.starting_session import StartingSession, ready_session
from featurize.building.worker import Run
from featurize.digests import settings_digest
from featurize.errors import JobError, UsageError, first_line
from featurize.jobs.column_task import ColumnTask, make_column_worker
from featurize.jobs.feature_columns import PreparedColumns, as_decided, open_decoding
from featurize.jobs.run import backbone_in, manifest_details, networks_to_keep, prepare_asked, ship_columns
from featurize.progress import stage
from featurize.recipes.backbone_section import BackboneSettings
from featurize.recipes.feature_columns import ONLY, AskedColumn, asked_columns
from featurize.recipes.recipe import FeaturizeRecipe
from featurize.recipes.toml_settings import check_settings
from featurize.shortening import some_lines
from featurize.sources.listing import ImageSource
from featurize.sources.opening import open_source
from featurize.sql.query import read_sql_table
from featurize.sql.tables import features_table
from featurize.storage.claims import Claim, claim_output
from featurize.tables.manifests import (
    FeatureColumn,
    FeaturesManifest,
    ShardRecord,
    differing_settings,
    library_versions,
    utc_now,
)
from featurize.tables.publication import publish, read_published_features
from featurize.tables.row_groups import open_parquet
from featurize.timings import Timings, add_timings

_NOT_COMPARED = {"engine", "precision", "batch_size", "layers", "column", "quantized"}


@dataclass(frozen=True)
class _Job:
    """What is to be done.

    Attributes:
        url: of the feature set.
        there: its manifest.
        manifest: the one to publish, but for the shards.
        shards: the shards to make anew, with the paths of the rows whose columns are computed.
        purpose: tells the job apart from others in the staging folder.
    """

    url: str
    there: FeaturesManifest
    manifest: FeaturesManifest
    shards: tuple[tuple[ShardRecord, Sequence[str]], ...]
    purpose: str


def add_columns(
    spark: SparkSession | StartingSession,
    recipe: FeaturizeRecipe,
    *,
    where: str | None = None,
    columns: Sequence[str] = (),
    card_folders: Sequence[Path] = (Path("datasets"),),
    on_backbone: Callable[[PreparedBackbone], None] = lambda backbone: None,
) -> BuildResult:
    """Computes the columns of `recipe` that its feature set lacks; or, with `where`, columns anew for some rows.

    Args:
        spark: as for `jobs.run.featurize`.
        recipe: names all columns, those that exist too.
        where: a condition in Spark's SQL over the columns of the set; None: columns that are missing are computed for all rows.
        columns: with `where`, the columns to compute; empty: all.
        card_folders: as for `jobs.run.featurize`.
        on_backbone: as for `jobs.run.featurize`.

    Raises:
        UsageError: there is no set, it does not match the recipe, or images of its rows are no longer in the source.
        JobError: the job failed, an image has changed, or another job is writing to the same place.
    """
    started = perf_counter()
    url = storage.absolute_url(recipe.features.url)
    there = read_published_features(url)
    wanted = _wanted(recipe, there, url, where=where, columns=columns)
    if not wanted:
        _remove_leftovers(url)
        return BuildResult(there, skipped=there.row_count, seconds=perf_counter() - started)
    source = open_source(
        recipe.images.source,
        recipe.images.split,
        card_folders=card_folders,
        follow_links=recipe.images.follow_links,
    )
    _check_source(recipe, source, there, url)
    decided = [as_decided(one, _decided(there, one), url) for one in wanted]
    prepared = prepare_asked(spark, recipe, source, [_decoded_as(one, there.backbone) for one in decided])
    if where is not None:
        _check_unchanged(prepared, there, url)
    for backbone in prepared.backbones:
        on_backbone(backbone)
    session = ready_session(spark)
    with claim_output(url) as claim:
        if read_published_features(url) != there:
            raise JobError(f"{url} was changed by another job just now. Run it again.")
        job = _plan(session, recipe, source, there, prepared, where=where, url=url)
        manifest, made, computed = _make(session, job, recipe, source, prepared, claim)
    stage("")
    return BuildResult(
        manifest,
        added=computed,
        skipped=manifest.row_count - computed,
        seconds=perf_counter() - started,
        timings=add_timings(record.timings for record in made),
        worker_memory_bytes=max((record.memory_bytes for record in made), default=0),
    )


def _wanted(
    recipe: FeaturizeRecipe, there: FeaturesManifest, url: str, *, where: str | None, columns: Sequence[str]
) -> list[AskedColumn]:
    """The columns to compute; the recipe must have all that exist, as they were made."""
    asked = {column.name: column for column in recipe.columns}
    for known in there.columns or [_plain_column(there, url)]:
        if known.name not in asked:
            raise UsageError(
                f"{url} has the column {known.name}, which the recipe does not name: it must name all columns, also those to add."
            )
        made = BackboneSettings.model_validate(known.settings).model_copy(update=decoding_of(known.backbone))
        given = _decoded_as(asked[known.name], known.backbone).settings
        if lines := differing_settings(*(one.model_dump(exclude=_NOT_COMPARED) for one in (made, given))):
            raise UsageError(f"{url}: the column {known.name} was made with other settings:\n" + "\n".join(lines))
    if where is None:
        if columns:
            raise UsageError("`columns` needs `where`: without it, the columns that are missing are computed.")
        return [column for name, column in asked.items() if name not in there.column_names]
    for name in columns:
        there.of_column(name, url)
    if missing := [name for name in asked if name not in there.column_names]:
        raise UsageError(f"{url} has no column {missing[0]} yet. Add it without `where` first, for all rows.")
    return [column for name, column in asked.items() if not columns or name in columns]


def _decoded_as(asked: AskedColumn, known: Mapping[str, Any]) -> AskedColumn:
    """A column that reads colours as the backbone `known` does, where the recipe says nothing."""
    return replace(asked, settings=asked.settings.model_copy(update=open_decoding(asked.settings, known)))


def _remove_leftovers(url: str) -> None:
    """Removes the staging folder of a job that was killed after it had published."""
    if storage.exists(storage.join_url(url, staging.STAGING)):
        with claim_output(url):
            if not staging.has_unpublished(url, read_published_features(url)):
                staging.remove_staging(url)


def _plain_column(there: FeaturesManifest, url: str) -> FeatureColumn:
    """The one column `features` of a set, as sets with several columns describe theirs."""
    if "backbone" not in there.recipe:
        raise UsageError(f"{url} does not say how its backbone was made. Make the features again with `featurize run`.")
    section = check_settings(BackboneSettings, there.recipe["backbone"], origin=f"the recipe in the manifest of {url}")
    return FeatureColumn(
        name=ONLY,
        preparation_id=there.preparation_id,
        backbone=there.backbone,
        feature_shape=there.feature_shape,
        feature_dtype=there.feature_dtype,
        settings=asked_columns([section.model_copy(update=decoding_of(there.backbone))])[0].settings.model_dump(
            exclude_none=True
        ),
    )


def _decided(there: FeaturesManifest, column: AskedColumn) -> Mapping[str, Any] | None:
    """The backbone in the set that decides engine and precision: of this column, or of another layer of the same network."""
    own = backbone_in(there.settings, column.name)
    if own is not None:
        return own
    made = [(one.settings, one.backbone) for one in there.columns] or [
        (there.recipe.get("backbone", {}), there.backbone)
    ]
    same = (backbone for settings, backbone in made if settings.get("name") == column.settings.name)
    return next(
        (backbone for backbone in same if "int8" not in (backbone["precision"], column.settings.precision)), None
    )


def _check_source(recipe: FeaturizeRecipe, source: ImageSource, there: FeaturesManifest, url: str) -> None:
    """Checks that the set was made of this source, with these classes and row groups."""
    asked = {
        "source": source.settings,
        "classes": list(source.classes),
        "rows_per_group": recipe.features.rows_per_group,
    }
    if lines := differing_settings({key: there.settings.get(key) for key in asked}, asked):
        raise UsageError(f"{url} holds features of other images than the recipe names:\n" + "\n".join(lines))


def _check_unchanged(prepared: PreparedColumns, there: FeaturesManifest, url: str) -> None:
    """Checks that columns that are computed anew would be what they are."""
    for column in prepared.columns:
        known = dict(backbone_in(there.settings, column.name) or {})
        if lines := differing_settings(known, column.determining):
            raise UsageError(
                f"{url}: the column {column.name} can be computed anew for some rows only by the same backbone:\n"
                + "\n".join(lines)
            )


def _plan(
    spark: SparkSession,
    recipe: FeaturizeRecipe,
    source: ImageSource,
    there: FeaturesManifest,
    prepared: PreparedColumns,
    *,
    where: str | None,
    url: str,
) -> _Job:
    """The shards to make, and the manifest to publish."""
    selected = None if where is None else _selected(spark, there, url, where)
    shards = []
    for record in there.shards:
        paths = _paths_of(url, record)
        chosen = paths if selected is None else [path for path in paths if path in selected]
        if chosen:
            shards.append((record, chosen))
    if where is not None:
        return _Job(url, there, there, tuple(shards), settings_digest([where, [one.name for one in prepared.columns]]))
    kept = there.columns or [_plain_column(there, url)]
    columns = [*kept, *prepared.as_manifest()]
    known = {column.name: backbone_in(there.settings, column.name) for column in kept}
    base = {key: value for key, value in there.settings.items() if key not in ("backbone", "columns")}
    settings = {**base, "columns": {**known, **{column.name: column.determining for column in prepared.columns}}}
    changes = {"settings": settings, "identity": settings_digest(settings), **manifest_details(recipe, source, columns)}
    return _Job(url, there, there.model_copy(update=changes), tuple(shards), "columns")


def _selected(spark: SparkSession, there: FeaturesManifest, url: str, where: str) -> Collection[str]:
    """The paths of the rows that a condition selects."""
    table = features_table(url, there, splits=[split for split in there.rows if there.split_rows(split)])
    try:
        rows = read_sql_table(spark, table).where(where).select("path").collect()
    except PySparkException as error:
        raise UsageError(f"`where` cannot be run: {first_line(error)}") from error
    if not rows:
        raise UsageError(f"`where` selects none of the {there.row_count:,} rows of {url}: {where}")
    return {row["path"] for row in rows}


def _paths_of(url: str, record: ShardRecord) -> list[str]:
    """The paths of the rows of a shard."""
    paths = list[str]()
    for file in record.files:
        with open_parquet(storage.join_url(url, file.path)) as stored:
            paths += stored.read(columns=["path"])["path"].to_pylist()
    return paths


def _make(
    spark: SparkSession,
    job: _Job,
    recipe: FeaturizeRecipe,
    source: ImageSource,
    prepared: PreparedColumns,
    claim: Claim,
) -> tuple[FeaturesManifest, list[ShardRecord], int]:
    """Makes the shards and publishes them; returns the manifest, the records that were made, and the number of rows computed."""
    started = perf_counter()
    known = _taken_over(job)
    todo = [(record, paths) for record, paths in job.shards if record.index_file.path not in known]
    run = Run(url=job.url, name=uuid4().hex[:8], reader=source.reader, decode_timeout_s=recipe.images.decode_timeout_s)
    rows = _listed(source.listing, [path for _, paths in todo for path in paths], job.url)
    taken = list(known.values())
    staging.keep_networks(job.url, networks_to_keep(prepared))
    claim.verify()
    staging.write_state(
        job.url,
        settings=job.manifest.settings,
        run=run.name,
        records=taken,
        there=job.there,
        purpose=job.purpose,
    )
    staging.remove_others(job.url, taken)
    made = _run(spark, run, job, prepared, todo, rows)
    stage("publishing")
    claim.verify()
    new = {record.index_file.path: record for record in (*taken, *made)}
    staging.place_files(job.url, list(new.values()))
    history = {
        "shards": [new.get(record.index_file.path, record) for record in job.there.shards],
        "updated_at": utc_now(),
        "seconds": round(job.there.seconds + perf_counter() - started, 3),
        "timings": Timings(**add_timings([job.there.timings, *(one.timings for one in made)]).rounded()),
        "versions": library_versions(),
    }
    manifest = job.manifest.model_copy(update=history)
    claim.verify()
    manifest = publish(job.url, manifest, after=job.there, operation="ADD COLUMNS")
    staging.remove_staging(job.url)
    return manifest, made, rows.num_rows


def _run(
    spark: SparkSession,
    run: Run,
    job: _Job,
    prepared: PreparedColumns,
    todo: Sequence[tuple[ShardRecord, Sequence[str]]],
    rows: pa.Table,
) -> list[ShardRecord]:
    """Runs the Spark job."""
    if not todo:
        return []
    stored = job.there.columns or [_plain_column(job.there, job.url)]
    task = ColumnTask(
        features=ship_columns(spark, prepared),
        stored={column.name: column.feature_dtype == "uint8" for column in stored},
        records=tuple(record for record, _ in todo),
        rows_per_group=job.there.rows_per_group,
    )
    ends = np.cumsum([0, *(len(paths) for _, paths in todo)]).tolist()
    with staging.removed_if_nothing_is_finished(job.url, run.name):
        answers = run_plan(
            spark,
            staging.plan_url(job.url, run.name),
            rows=rows,
            make_worker=partial(make_column_worker, run, task),
            shards=list(pairwise(ends)),
        )
    return [ShardRecord.model_validate_json(row["record"]) for row in answers]


def _taken_over(job: _Job) -> dict[str, ShardRecord]:
    """The shards that a killed job of the same kind finished, by their index files.

    Raises:
        UsageError: another kind of run is unfinished there.
    """
    unfinished = staging.read_unfinished(job.url, job.there)
    if unfinished is None:
        return {}
    is_same = unfinished.purpose == job.purpose and not differing_settings(unfinished.settings, job.manifest.settings)
    if is_same and unfinished.version != job.there.version.number:
        return {}  # made from rows that another job has replaced since
    if is_same:
        ours = {record.index_file.path for record, _ in job.shards}
        return {one.index_file.path: one for one in unfinished.records if one.index_file.path in ours}
    published = {record.index_file.path for record in job.there.shards}
    if unfinished.purpose or all(record.index_file.path in published for record in unfinished.records):
        return {}  # only time is lost
    raise UsageError(
        f"{job.url} holds the work of an unfinished run. Finish it with `featurize run` first, or remove "
        f"{storage.join_url(job.url, staging.STAGING)}."
    )


def _listed(listing: pa.Table, paths: Sequence[str], url: str) -> pa.Table:
    """The rows of a listing with these paths, in their order.

    Raises:
        UsageError: some are not listed.
    """
    places = pc.index_in(
        pa.array(paths, pa.string()), value_set=listing.column("path").combine_chunks().cast(pa.string())
    )
    if places.null_count:
        gone = [path for path, is_there in zip(paths, places.is_valid().to_pylist(), strict=True) if not is_there]
        lines = "\n".join(some_lines((f"  - {path}" for path in gone), 5, things="images"))
        raise UsageError(f"{len(gone)} images that have a row in {url} are no longer in the source:\n{lines}")
    return listing.take(places)
