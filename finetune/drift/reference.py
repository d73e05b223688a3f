"""The reference of a model: its predictions on its own validation split, kept once beside its other predictions.

    <output>/drift/references/<model_id>.parquet    one row per image: label, probability, projection

The training split would not do: a model is more confident on images that it was trained on. The file is plain Parquet; reading it
unpickles nothing.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from featurize import storage
from featurize.errors import JobError, UsageError, first_line
from featurize.storage.inner_path import InnerName, NamedUrl
from featurize.tables.documents import DamagedDocumentError, parse_document
from featurize.tables.predictions import DRIFT
from finetune.drift.projection import SIZE, Projection, embed, embedding_model, median_distance, seed_of
from finetune.evaluation.split_answers import SplitRows, open_split_rows
from finetune.models.folder import ModelCard, load_model

SPLIT = "validation"
MOST_IMAGES = 4096
"""Images drawn, by their ids, from a larger validation split: more would hardly make the tests more sensitive."""
LEAST_IMAGES = 50
"""Fewest images for a reference: with fewer, no test would detect anything."""
_SCHEMA = pa.schema([("label", pa.string()), ("probability", pa.float32()), ("projection", pa.list_(pa.float32()))])
_KEY = b"firn.reference"
_ROW_ID_BITS = 60
SCHEMA_VERSION = 1


class _Origin(BaseModel):
    """Where a reference comes from: `Reference.origin`."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_id: InnerName
    network_sha256: str
    features: NamedUrl
    features_identity: str
    split: str
    rows: int


class _About(BaseModel):
    """What is in the metadata of the file's schema."""

    schema_version: int = SCHEMA_VERSION
    origin: _Origin
    projection: Projection


@dataclass(frozen=True)
class Reference:
    """A model's predictions on images without drift.

    Attributes:
        labels: The most probable class of each image, even where the model would abstain.
        probabilities: float32 ``(n_images,)``, the probability of that class.
        projections: float32 ``(n_images, size)``.
        projection: How projections are computed, here and for new predictions.
        origin: JSON-ready: `model_id`, `network_sha256`, `features`, `features_identity`, `split`, and `rows` in the split.
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    projections: NDArray[np.float32]
    projection: Projection
    origin: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of images for each label."""
        return dict(Counter(self.labels))

    @property
    def confidence(self) -> float:
        """Mean probability of the most probable class."""
        return float(self.probabilities.mean(dtype=np.float64))


def reference_url(output: str, model_id: str) -> str:
    """URL of a model's reference, beside the predictions at `output`."""
    return storage.join_url(output, DRIFT, "references", f"{model_id}.parquet")


def find_reference(output: str, url: str, card: ModelCard) -> Reference:
    """The reference of the model at `url`, beside the predictions at `output`; made and kept if there is none.

    Raises:
        UsageError: There is none, and the validation split to make it from is gone or too small.
        JobError: It is damaged, or belongs to another network.
    """
    kept = read_reference(output, card.model_id)
    if kept is None:
        made = make_reference(url, card)
        storage.create_exclusively(reference_url(output, card.model_id), encode(made))
        kept = read_reference(output, card.model_id) or made  # another process may have been first
    if kept.origin["network_sha256"] != card.network_sha256:
        raise JobError(
            f"{reference_url(output, card.model_id)} belongs to another network than the model's. Remove it and all "
            "predictions of the model."
        )
    return kept


@contextmanager
def reference_of_run(
    output: str, url: str, card: ModelCard, *, has_begun: Callable[[], bool]
) -> Iterator["Reference | str"]:
    """The reference for a prediction run, or why there is none; one made for a run that left nothing is removed again.

    Args:
        has_begun: Called at the end: whether the run left anything behind.
    """
    was_there = storage.exists(reference_url(output, card.model_id))
    try:
        yield _reference_or_fault(output, url, card)
    finally:
        if not was_there and not has_begun():
            storage.remove(reference_url(output, card.model_id))
            storage.remove_if_empty(storage.join_url(output, DRIFT))


def _reference_or_fault(output: str, url: str, card: ModelCard) -> "Reference | str":
    """The result of `find_reference`, or the reason where it fails: images are then labelled without projections."""
    try:
        return find_reference(output, url, card)
    except UsageError as error:
        return str(error)


def make_reference(url: str, card: ModelCard) -> Reference:
    """Runs the model at `url` on the validation split that it was trained with.

    Raises:
        UsageError: The feature set is gone, has changed, or has too small a validation split.
    """
    rows = open_split_rows([card], SPLIT, purpose="to detect drift")
    if rows.count < LEAST_IMAGES:
        raise UsageError(
            f"{rows.url} has {rows.count} images in its validation split; a reference for drift needs {LEAST_IMAGES}."
        )
    probabilities, embeddings = _run(url, rows)
    projection = Projection(seed_of(card.model_id), SIZE, median_distance(embeddings))
    best = probabilities.argmax(axis=1)
    return Reference(
        labels=tuple(card.classes[index] for index in best),
        probabilities=probabilities.max(axis=1),
        projections=projection.apply(embeddings),
        projection=projection,
        origin={
            "model_id": card.model_id,
            "network_sha256": card.network_sha256,
            "features": rows.url,
            "features_identity": rows.manifest.identity,
            "split": SPLIT,
            "rows": rows.count,
        },
    )


def read_reference(output: str, model_id: str) -> Reference | None:
    """The reference that is stored, or None.

    Raises:
        JobError: It is damaged.
    """
    url = reference_url(output, model_id)
    try:
        content = storage.read_bytes(url)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return decode(content, origin=url)
    except (pa.ArrowException, ValueError, KeyError, TypeError, OverflowError, DamagedDocumentError) as error:
        raise JobError(
            f"{url} is not a reference, or is damaged: {first_line(error)}. Remove it, and it will be made again."
        ) from error


def encode(reference: Reference) -> bytes:
    """A reference as a Parquet file; its origin is in the metadata of the schema."""
    about = {
        "schema_version": SCHEMA_VERSION,
        "origin": dict(reference.origin),
        "projection": reference.projection.as_dict(),
    }
    flat = pa.array(reference.projections.ravel(), pa.float32())
    ends = pa.array(np.arange(reference.rows + 1, dtype=np.int32) * reference.projection.size)
    columns = [
        pa.array(reference.labels, pa.string()),
        pa.array(reference.probabilities),
        pa.ListArray.from_arrays(ends, flat),
    ]
    schema = _SCHEMA.with_metadata({_KEY: json.dumps(about).encode()})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def decode(content: bytes, *, origin: str) -> Reference:
    """Reads what `encode` wrote.

    Args:
        content: The content of the file.
        origin: URL of the file.

    Raises:
        JobError: It has another schema version.
        ArrowException, ValueError, KeyError, TypeError, OverflowError, DamagedDocumentError: It is anything else.
    """
    table = pq.read_table(io.BytesIO(content))
    about = parse_document((table.schema.metadata or {})[_KEY], _About, version=SCHEMA_VERSION, origin=origin)
    if not table.schema.equals(_SCHEMA) or about.projection.size < 1:
        raise ValueError("its columns are not those of a reference")
    projection = about.projection
    flat = table["projection"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Reference(
        labels=tuple(table["label"].to_pylist()),
        probabilities=table["probability"].to_numpy(),
        projections=flat.astype(np.float32, copy=False).reshape(table.num_rows, projection.size),
        projection=projection,
        origin=about.origin.model_dump(),
    )


def _run(url: str, rows: SplitRows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities and embeddings of at most `MOST_IMAGES` images, in the order of their ids, whatever file they are in."""
    network, _ = load_model(url)
    model = embedding_model(network)
    below = (1 << _ROW_ID_BITS) * min(1.0, MOST_IMAGES / rows.count)
    ids, parts = [], []
    for part in rows.parts():
        drawn = part.row_ids < below
        ids.append(part.row_ids[drawn])
        parts.append(embed(model, part.features[drawn]))
    order = np.argsort(np.concatenate(ids), kind="stable")
    probabilities, embeddings = (np.concatenate(column)[order] for column in zip(*parts, strict=True))
    return probabilities, embeddings
