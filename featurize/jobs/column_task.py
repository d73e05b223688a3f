"""The work of `featurize add-column` on a worker: a shard with the same rows in the same order, and some columns computed."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import time
from typing import Any

import numpy as np
import pyarrow as pa

from featurize import storage
from featurize.building import staging
from featurize.building.image_reports import ReportTo, ShardReport, make_report, reporting
from featurize.building.plan import read_planned
from featurize.building.shard_files import ParquetFile
from featurize.building.worker import (
    READS_BESIDE,
    Loaded,
    Run,
    Worker,
    decoder_pool,
    make_record_worker,
    part_name,
    task_attempt,
    worker_threads,
)
from featurize.decoding.decode import DecodeError
from featurize.errors import JobError
from featurize.jobs.run_task import ColumnsOfFeatures, DecodedSizes, plain_columns
from featurize.map_ahead import map_ahead
from featurize.memory import peak_memory_bytes
from featurize.sources.listing import Fetch, ImageReadError, PlannedImage
from featurize.tables.manifests import DataFile, ShardRecord
from featurize.tables.row_groups import open_parquet
from featurize.tables.schemas import features_schema
from featurize.timings import Timings


@dataclass(frozen=True)
class ColumnTask:
    """What workers add to each shard.

    Attributes:
        features: the columns to compute, and what computes them.
        stored: the columns of features that the set has, in the order of its files, and whether they are pixels.
        records: the shards, in the order of the plan, which lists the images whose columns are computed.
        rows_per_group: rows in a Parquet row group.
    """

    features: ColumnsOfFeatures
    stored: Mapping[str, bool]
    records: tuple[ShardRecord, ...]
    rows_per_group: int

    @property
    def schema(self) -> pa.Schema:
        """The columns of the new files: those that are stored, then those that are new."""
        return features_schema({**self.stored, **{column.name: column.is_bytes for column in self.features.columns}})


def make_column_worker(run: Run, task: ColumnTask, report_to: ReportTo | None = None) -> Worker:
    """The function that Spark runs on each partition: it takes numbers of shards and returns their new records."""
    return make_record_worker(lambda shard: _ShardColumns(run, task, shard).make(report_to))


class _ShardColumns:
    """One shard: its files are read row group by row group, and written with the columns that were computed."""

    def __init__(self, run: Run, task: ColumnTask, shard: int) -> None:
        self._run, self._task, self._shard = run, task, shard
        self._timings, self._done, self._attempt = Timings(), 0, task_attempt()
        self._name = part_name(run.name, shard)

    def make(self, report_to: ReportTo | None) -> ShardRecord:
        """Makes and commits the shard; returns its record."""
        record, began_at = self._task.records[self._shard], time()
        with self._timings.measure("tasks"):
            planned = {image.path: image for image in read_planned(self._plan_url, self._shard)}
            rows = [self._ids_of(file) for file in record.files]
            images = [planned[path] for ids in rows for path in ids if path in planned]
            with reporting(report_to, self._look), closing(self._load_all(images)) as loaded:
                files = [
                    self._write(file, ids, planned.keys(), loaded) for file, ids in zip(record.files, rows, strict=True)
                ]
        made = {"files": files, "timings": self._timings, "began_at": began_at, "memory_bytes": peak_memory_bytes()}
        return staging.commit(self._run.url, self._run.name, self._shard, record.model_copy(update=made))

    @property
    def _plan_url(self) -> str:
        return staging.plan_url(self._run.url, self._run.name)

    def _look(self) -> ShardReport:
        return make_report(self._shard, self._attempt, done=self._done, rejected=0, timings=self._timings)

    def _ids_of(self, file: DataFile) -> dict[str, str]:
        """The image id of each row of a file by its path, in the order of the rows."""
        with open_parquet(storage.join_url(self._run.url, file.path)) as stored:
            table = stored.read(columns=["path", "image_id"])
        return dict(zip(table["path"].to_pylist(), table["image_id"].to_pylist(), strict=True))

    def _write(
        self, file: DataFile, ids: Mapping[str, str], wanted: Iterable[str], loaded: Iterator[Loaded[DecodedSizes]]
    ) -> DataFile:
        """Writes a file anew; `loaded` gives the images of its `wanted` rows, in their order."""
        schema = self._task.schema
        path = f"{file.path.rpartition('/')[0]}/part-{self._name}.parquet"
        target = storage.join_url(self._run.url, staging.STAGING, path)
        plain = plain_columns([name for name in schema.names if name.startswith("features")])
        out = ParquetFile(target, schema, rows_per_group=self._task.rows_per_group, plain_columns=plain)
        try:
            with open_parquet(storage.join_url(self._run.url, file.path)) as stored:
                for group in range(stored.num_row_groups):
                    table = stored.read_row_group(group, use_threads=False)
                    chosen = np.array([path in wanted for path in table["path"].to_pylist()], np.bool_)
                    columns = self._compute(list(islice(loaded, int(chosen.sum()))), ids)
                    with self._timings.measure("write"):
                        for batch in _with_columns(table, columns, chosen, schema).to_batches():
                            out.write(batch)
                        out.end_group()
            with self._timings.measure("write"):
                return out.close(path=path, split=file.split)
        except BaseException:
            out.abandon()
            raise

    def _compute(self, images: Sequence[Loaded[DecodedSizes]], ids: Mapping[str, str]) -> dict[str, pa.Array]:
        """The columns of the chosen rows of a row group."""
        if changed := next((one for one in images if one.image_id != ids[one.image.path]), None):
            raise JobError(
                f"{changed.image.path} has changed since its row was made. Bring the set up to date with `featurize run` first."
            )
        features, parts = self._task.features, list[dict[str, pa.Array]]()
        for batch, computed in features.compute_all(iter(images), self._timings):
            parts.append(computed)
            self._done += len(batch)
        return {
            column.name: pa.concat_arrays([part[column.name] for part in parts]) for column in features.columns if parts
        }

    def _load_all(self, images: Sequence[PlannedImage]) -> Generator[Loaded[DecodedSizes], None, None]:
        """The images, decoded ahead.

        Raises:
            JobError: one cannot be read or decoded any more.
        """
        threads, reader = worker_threads(), self._run.reader
        load = partial(self._load, decoders=decoder_pool(threads, self._run.decode_timeout_s))
        items = zip(images, reader.open(images), strict=True)
        ahead = self._task.features.ahead(threads)
        outcomes = map_ahead(load, items, threads=threads + READS_BESIDE, ahead=ahead)
        while True:
            with self._timings.measure("wait"):
                loaded = next(outcomes, None)
            if loaded is None:
                return
            yield loaded

    def _load(self, item: tuple[PlannedImage, Fetch], *, decoders: Any) -> Loaded[DecodedSizes]:
        image, fetch = item
        try:
            content = fetch()
            with decoders.lend() as decoder:
                decoded = self._task.features.decode(content, decoder)
        except (ImageReadError, DecodeError) as error:
            raise JobError(
                f"{image.path} has a row, but its image cannot be used any more: {error}. Nothing was published."
            ) from error
        return Loaded(image, self._run.reader.identify(image, content), decoded)


def _with_columns(
    table: pa.Table, columns: Mapping[str, pa.Array], chosen: np.ndarray[Any, np.dtype[np.bool_]], schema: pa.Schema
) -> pa.Table:
    """`table` with the columns that were computed for its chosen rows; other rows keep the values that they have."""
    if columns and not chosen.all():
        places = np.where(chosen, np.cumsum(chosen) - 1 + len(table), np.arange(len(table)))
        columns = {
            name: pa.concat_arrays([table[name].combine_chunks(), column]).take(pa.array(places))
            for name, column in columns.items()
        }
    arrays = [columns[field.name] if field.name in columns else table[field.name] for field in schema]
    return pa.table(arrays, schema=schema).combine_chunks()
