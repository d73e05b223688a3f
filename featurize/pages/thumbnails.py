"""Thumbnails for a page, read from the sources of a feature set's images."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from featurize import storage
from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import Decoder
from featurize.errors import FirnError
from featurize.sources.listing import ContentReader, ImageReadError, PlannedImage, planned_images
from featurize.sources.readers import FileReader, IdxReader, SceneReader
from featurize.storage.inner_path import named_url
from featurize.tables.manifests import FeaturesManifest

MAX_SIDE = 160  # pixels
_QUALITY = 80  # JPEG quality
_Located = tuple[ContentReader, list[PlannedImage]]


class ImagesUnreadableError(Exception):
    """No image can be read. The message is the reason: one line."""


def read_thumbnails(manifest: FeaturesManifest, paths: Iterable[str], *, url: str) -> tuple[dict[str, str], str | None]:
    """The images at `paths` as data URLs of JPEGs, none larger than `MAX_SIDE` pixels a side.

    Args:
        manifest: Manifest of the feature set, whose settings name the images' source.
        paths: Paths as in the feature set. Only those in the source that its settings name are read.
        url: URL of the feature set. It may name sources where `storage.checked_url` allows it.

    Returns:
        A data URL for each path whose image can be read, and, if there are others, the reason for one of them.
    """
    wanted = sorted(set(paths))
    if not wanted:
        return {}, None
    try:
        reader, images = _locate(manifest, wanted, url)
    except (ImagesUnreadableError, FirnError, OSError) as error:
        return {}, str(error)
    found, reason = dict[str, str](), None
    with closing(Decoder()) as decoder:
        for path, answer in _read_all(reader, images, decoder):
            if isinstance(answer, str):
                reason = answer
            else:
                found[path] = data_url(answer)
    if reason is None and len(found) < len(wanted):
        reason = "the source no longer lists them"
    return found, reason


def data_url(jpeg: bytes) -> str:
    """A JPEG as an image URL for a page that loads nothing."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def make_thumbnail(content: bytes, decoder: Decoder) -> bytes:
    """An image file as a JPEG of at most `MAX_SIDE` pixels a side, in its proportions; smaller images keep their size.

    Raises:
        DecodeError: The bytes are not a usable image.
    """
    from PIL import Image

    info = decoder.inspect(content)
    scale = min(1.0, MAX_SIDE / max(info.width, info.height))
    height, width = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    pixels, _ = decoder.decode(content, height=height, width=width, channels=3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def _read_all(
    reader: ContentReader, images: Sequence[PlannedImage], decoder: Decoder
) -> Iterator[tuple[str, bytes | str]]:
    """For each image its path, and its thumbnail or the reason why there is none."""
    for image, fetch in zip(images, reader.open(images), strict=True):
        try:
            yield image.path, make_thumbnail(fetch(), decoder)
        except (ImageReadError, DecodeError, OSError) as error:
            yield image.path, str(error)


def _locate(manifest: FeaturesManifest, paths: Sequence[str], url: str) -> _Located:
    """How to read the images at `paths`. Where paths are sufficient, the source is not listed again."""
    source: dict[str, Any] = manifest.settings.get("source") or {}
    layout = source.get("layout")
    if layout in ("folders", "idx"):
        folder = named_url(storage.absolute_url(str(source.get("source"))), document=url)
        paths = [path for path in paths if storage.is_within(storage.absolute_url(path), folder)]
    if layout == "folders":
        return FileReader(inside=folder), [_plan(path) for path in paths]
    if layout == "idx":
        parts = [path.rpartition("#") for path in paths]
        places = [
            _plan(path, container=part[0], position=int(part[2])) for path, part in zip(paths, parts, strict=True)
        ]
        return IdxReader(), places
    if layout == "synthetic":
        drawn = source["synthetic"]
        scenes = [_plan(path, label=path.split("/")[-2], position=_number_of(path)) for path in paths]
        return SceneReader(seed=drawn["seed"], height=drawn["height"], width=drawn["width"]), scenes
    if layout == "images":
        return _locate_in_table(named_url(str(source["source"]), document=url), paths)
    raise ImagesUnreadableError("the feature set does not say where its images came from")


def _locate_in_table(url: str, paths: Sequence[str]) -> _Located:
    import pyarrow as pa
    import pyarrow.compute as pc

    from featurize.sources.opening import open_source

    opened = open_source(url, None)
    rows = opened.listing.filter(pc.is_in(opened.listing["path"], pa.array(paths, pa.large_string())))
    images = planned_images(rows)
    return opened.reader, sorted(images, key=lambda image: (str(image.container), image.position or 0))


def _plan(
    path: str, *, label: str | None = None, container: str | None = None, position: int | None = None
) -> PlannedImage:
    return PlannedImage(path, label, None, None, "", container, position)


def _number_of(path: str) -> int:
    """The index of a scene, which its file name contains."""
    return int(path.rpartition("/")[2].partition(".")[0])
