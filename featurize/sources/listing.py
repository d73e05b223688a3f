"""What every source of images gives: a listing, one row per image, and a way for the workers to read what it lists."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from featurize.sources.cards import Card
from featurize.sources.splits import SplitRule

_REPEATED_TEXT = pa.dictionary(pa.int32(), pa.string())
LISTING_SCHEMA = pa.schema(
    [
        ("path", pa.large_string()),  # of all images together they may take more than 2 GiB
        ("label", _REPEATED_TEXT),
        ("own_split", _REPEATED_TEXT),
        ("bytes_size", pa.int64()),
        ("stamp", pa.large_string()),
        ("container", _REPEATED_TEXT),
        ("position", pa.int64()),
    ]
)
"""The columns of a listing.

- `label` is null outside class folders, `own_split` where the source brings none, `bytes_size` where it is not known.
- `stamp` tells an image that has changed from one that has not, without reading it: see `ImageSource`.
- `container` and `position` say where the bytes lie if `path` alone does not: a file and the number of a row in it.
"""
Fetch = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One row of a listing, as a worker gets it."""

    path: str
    label: str | None
    own_split: str | None
    bytes_size: int | None
    stamp: str
    container: str | None
    position: int | None


class ContentReader(Protocol):
    """Worker side: how the bytes of listed images are had. It travels inside the function that Spark ships."""

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        """For each of `images`, in their order, a function that reads its bytes; it may be called in any thread.

        The function raises `ImageReadError` where the fault is the image's own, and OSError where it is the storage's.
        """
        ...

    def identify(self, image: PlannedImage, content: bytes) -> str:
        """The `image_id` of an image, of which `content` has been read: the SHA-256 of the bytes of its file."""
        ...


class ImageReadError(Exception):
    """The bytes of one image cannot be had, and those of others can. The message is the reason: one line, no path."""


@dataclass(frozen=True)
class ImageSource:
    """Images to be read.

    Attributes:
        listing: LISTING_SCHEMA, sorted by `path`, which is unique. Equal stamps under one path mean equal bytes; different
            stamps mean that the bytes are to be compared.
        classes: the labels, sorted; the place of one is its `label_index`.
        settings: what determines, with the bytes themselves, which rows come out; part of the identity of what is made of them.
    """

    listing: pa.Table
    reader: ContentReader
    classes: tuple[str, ...]
    split_rule: SplitRule
    settings: dict[str, Any]
    card: Card | None = None
    lineage: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images there are."""
        return int(self.listing.num_rows)


def make_listing(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """One listing, sorted by path, of parts made by `listing_batch`."""
    table = pa.Table.from_batches(batches, schema=LISTING_SCHEMA)
    return table.unify_dictionaries().sort_by("path")


def listing_batch(columns: dict[str, Sequence[Any]]) -> pa.RecordBatch:
    """Rows of a listing, from their columns; those left out are null."""
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
