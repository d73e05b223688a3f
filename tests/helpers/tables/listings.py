"""Small pictures in folders, and what a source gives of them; for the tests."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featurize.recipes.toml_settings import check_settings
from featurize.sources.cards import Card
from featurize.sources.listing import (
    LISTING_SCHEMA,
    ImageSource,
    PlannedImage,
    listing_batch,
    make_listing,
    planned_images,
)


@dataclass(frozen=True)
class Row:
    """A row of a listing, with the bytes that the reader gives for it."""

    image: PlannedImage
    content: bytes

    @property
    def image_id(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def picture(seed: int, *, height: int = 8, width: int = 8) -> bytes:
    """Noise as PNG."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put(folder: Path, *names: str) -> None:
    """Writes a small picture of its own under every name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)))


def card(**settings: Any) -> Card:
    """A card of a folder per class, changed by `settings`."""
    base = {"name": "mine", "title": "Mine", "licence": "CC0-1.0", "layout": "folders"}
    return check_settings(Card, {**base, **settings}, origin="card")


def rows(source: ImageSource) -> dict[str, Row]:
    """The rows of a source by path; what every source promises of its listing is checked on the way."""
    assert source.listing.schema == LISTING_SCHEMA
    images = planned_images(source.listing)
    paths = [image.path for image in images]
    assert paths == sorted(set(paths))
    assert len(paths) == source.images
    assert {image.label for image in images} - {None} <= set(source.classes)
    fetches = source.reader.open(images)
    return {image.path: Row(image, fetch()) for image, fetch in zip(images, fetches, strict=True)}


def listing_of(count: int, **columns: Any) -> Any:
    """A listing of `count` images, of which the columns are given or invented."""
    base: dict[str, Any] = {
        "path": [f"file:///photos/{index:07d}.png" for index in range(count)],
        "label": [f"class {index % 3}" for index in range(count)],
        "bytes_size": [1000] * count,
        "stamp": ["1:1"] * count,
    }
    return make_listing([listing_batch({**base, **columns})])
