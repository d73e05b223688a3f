"""The interface of image sources: a listing, one row per image, and a reader with which workers read the listed images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from featurize.sources.cards import Card
from featurize.sources.splits import SplitRule

_REPEATED_TEXT = pa.dictionary(pa.int32(), pa.string())
LISTING_SCHEMA = pa.schema(
    [
        ("path", pa.large_string()),  # the paths of all images may take more than 2 GiB
        ("label", _REPEATED_TEXT),
        ("own_split", _REPEATED_TEXT),
        ("bytes_size", pa.int64()),
        ("stamp", pa.large_string()),
        ("container", _REPEATED_TEXT),
        ("position", pa.int64()),
    ]
)
"""The columns of a listing.

- `label` is null outside class folders, `own_split` where the source has no splits, `bytes_size` where it is not known.
- `stamp` tells whether an image has changed, without reading it: see `ImageSource`.
- `container` and `position` locate the bytes where `path` alone does not: a file and the number of a row in it.
"""
Fetch = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One row of a listing, for a worker."""

    path: str
    label: str | None
    own_split: str | None
    bytes_size: int | None
    stamp: str
    container: str | None
    position: int | None


class ContentReader(Protocol):
    """Reads the bytes of listed images on a worker. It travels inside the function that Spark ships."""

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        """For each of `images`, in order, a function that reads its bytes; it may be called in any thread.

        The function raises `ImageReadError` where the image is at fault, and OSError where the storage is.
        """
        ...

    def identify(self, image: PlannedImage, content: bytes) -> str:
        """The `image_id` of an image with the bytes `content`: the SHA-256 of its file."""
        ...


class ImageReadError(Exception):
    """The bytes of one image cannot be read, but others can. The message is the reason: one line, without a path."""


@dataclass(frozen=True)
class ImageSource:
    """Images to be read.

    Attributes:
        listing: Rows of LISTING_SCHEMA, sorted by `path`, which is unique. Equal stamps under one path mean equal bytes;
            different stamps mean that the bytes must be compared.
        reader: Reads the listed images on workers.
        classes: The class labels, sorted; a label's position is its `label_index`.
        split_rule: Divides the images into splits.
        settings: Whatever, besides the bytes, determines the resulting rows; part of the identity of tables made from them.
        card: The data set card, if there is one.
        lineage: Where the images come from, for the manifest.
        notes: What is odd about the source, for the user: a sentence each.
    """

    listing: pa.Table
    reader: ContentReader
    classes: tuple[str, ...]
    split_rule: SplitRule
    settings: dict[str, Any]
    card: Card | None = None
    lineage: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.listing.num_rows)


def make_listing(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """One listing, sorted by path, from parts made by `listing_batch`."""
    table = pa.Table.from_batches(batches, schema=LISTING_SCHEMA)
    return table.unify_dictionaries().sort_by("path")


def listing_batch(columns: dict[str, Sequence[Any]]) -> pa.RecordBatch:
    """Rows of a listing, from their columns; columns left out are null."""
    count = len(columns["path"])
    arrays = [
        pa.array(columns[field.name], type=field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in LISTING_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=LISTING_SCHEMA)


def planned_images(rows: pa.Table) -> list[PlannedImage]:
    """The rows of (part of) a listing."""
    columns = [rows.column(name).to_pylist() for name in LISTING_SCHEMA.names]
    return [PlannedImage(*values) for values in zip(*columns, strict=True)]


def describe_rule(rule: SplitRule) -> dict[str, Any]:
    """The split rule, for the settings of a source."""
    if rule.fractions is not None:
        return rule.fractions.model_dump()
    return {"own": True, "validation_fraction": rule.validation_fraction, "seed": rule.seed}
