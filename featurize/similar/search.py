"""The images of a feature set that are most similar to one image: every row compared, with one row group in memory at a time."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurize import storage
from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import Decoder
from featurize.digests import sha256_bytes
from featurize.errors import JobError, UsageError
from featurize.similar.nearest import Metric, NearestSearch
from featurize.sources.listing import ImageReadError
from featurize.sources.readers import read_file
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import read_features_manifest
from featurize.tables.row_groups import RowGroup, features_of, iterate_row_groups, list_row_groups, read_row_group

_KEYS = ("image_id", "path")
_FACTS = (*_KEYS, "label")


@dataclass(frozen=True)
class SimilarImage:
    """A row of the feature set, compared with the query.

    Attributes:
        distance: 1 minus the cosine, in [0, 2], or the Euclidean distance.
    """

    image_id: str
    path: str
    label: str
    split: str
    distance: float


@dataclass(frozen=True)
class Query:
    """The image that others are compared with.

    Attributes:
        name: The image as the user named it.
        features: ``(dim,)``, float32 or uint8.
        row: The image's row in the feature set; None if the backbone had to compute its features.
        content: The bytes of its file; None if it was not given as a file.
    """

    name: str
    image_id: str
    features: NDArray[Any]
    row: SimilarImage | None
    content: bytes | None


@dataclass(frozen=True)
class Similar:
    """The result of a search: the nearest images first, by distance and path.

    Attributes:
        url: URL of the feature set.
        rows: Number of rows that were compared.
    """

    url: str
    manifest: FeaturesManifest
    query: Query
    metric: Metric
    rows: int
    images: list[SimilarImage]


def find_similar(
    url: str,
    image: str,
    *,
    k: int = 10,
    metric: Metric = "cosine",
    splits: Sequence[str] | None = None,
    column: str | None = None,
) -> Similar:
    """Finds the `k` images of the feature set at `url` that are nearest to `image`, without `image` itself.

    Args:
        url: URL of the feature set.
        image: A file or its URL, or the `image_id` or `path` of a row. For a file whose bytes are in the set, its row is used;
            the features of any other file are computed by the backbone that made the set.
        k: Number of images to find.
        metric: "cosine" or "euclidean".
        splits: Splits to search; default: all.
        column: The column of features; default: the only one.

    Raises:
        UsageError: There is no such feature set, split or image; or the backbone cannot be rebuilt identically.
        JobError: A file is missing or damaged, the image cannot be decoded, or it has no direction for the cosine.
    """
    manifest = read_features_manifest(url).of_column(column, url)
    names = _check_splits(url, manifest, splits)
    query = find_query(url, manifest, image)
    try:
        search = NearestSearch(query.features, k + 1, metric)  # one more, for the row of the image itself
    except ValueError as error:
        raise JobError(f"the features of {image} cannot be compared by {metric}: {error}") from error
    found: dict[int, SimilarImage] = {}
    rows = 0
    for split, group, table in _scan(url, manifest, names, (*_FACTS, "features")):
        features = features_of(table, manifest, origin=group.url)
        near = search.add(features.reshape(len(features), -1))
        found |= {rows + int(row): _image_at(table, int(row), split) for row in near}
        found = {row: found[row] for row in search.found.rows.tolist()}
        rows += table.num_rows
    ranked = [
        SimilarImage(image.image_id, image.path, image.label, image.split, distance)
        for image, distance in zip(found.values(), search.found.distances.tolist(), strict=True)
        if query.row is None or image.path != query.row.path
    ]
    ranked.sort(key=lambda image: (image.distance, image.path))
    return Similar(storage.absolute_url(url), manifest, query, metric, rows, ranked[:k])


def find_query(url: str, manifest: FeaturesManifest, image: str) -> Query:
    """The image that the user named, with its features; see `find_similar`.

    Raises:
        UsageError, JobError: Raised by `find_similar` for the same reasons.
    """
    content = _content_of(image)
    image_ids = {image} if content is None else {sha256_bytes(content)}
    paths = {image}
    with suppress(UsageError):  # a row's path may have a scheme that files do not have, such as that of a drawn scene
        paths.add(storage.absolute_url(image))
    place = _find_row(url, manifest, image_ids, paths, must_be_id=content is not None)
    if place is not None:
        split, group, number = place
        table = read_row_group(group, (*_FACTS, "features")).slice(number, 1).combine_chunks()
        row = _image_at(table, 0, split)
        features = features_of(table, manifest, origin=group.url).reshape(-1)
        return Query(image, row.image_id, features, row, content)
    if content is None:
        raise UsageError(f"{image!r} is neither a file nor the image_id or path of a row of {url}.")
    features = compute_features(url, manifest, content, name=image)
    return Query(image, sha256_bytes(content), features, None, content)


def compute_features(url: str, manifest: FeaturesManifest, content: bytes, *, name: str) -> NDArray[Any]:
    """The features of an image file, ``(dim,)``, by the backbone that made the feature set at `url`.

    Raises:
        UsageError: The backbone cannot be rebuilt identically.
        JobError: The image cannot be decoded, or this machine cannot run the backbone.
    """
    from featurize.backbones.backbone import load_backbone
    from featurize.backbones.rebuild import backbone_settings, prepare_again
    from featurize.backbones.spec import BackboneSpec

    spec = BackboneSpec.from_dict(manifest.backbone)
    with closing(Decoder()) as decoder:
        try:
            pixels, _ = decoder.decode(content, **spec.decoding)
        except DecodeError as error:
            raise JobError(f"{name} is not a readable image: {error}.") from error
    settings = backbone_settings(url, manifest)
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        prepared = prepare_again(
            settings,
            folder,
            spec=manifest.backbone,
            preparation_id=manifest.preparation_id,
            whose=f"the feature set {url}",
        )
        forward = load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)
    return np.asarray(forward(pixels[None])[0]).reshape(-1)


def _check_splits(url: str, manifest: FeaturesManifest, splits: Sequence[str] | None) -> list[str]:
    there = [split for split in manifest.rows if manifest.split_rows(split)]
    if unknown := [split for split in splits or () if split not in there]:
        raise UsageError(f"{url} has no rows in split {unknown[0]!r}; it has {', '.join(there)}.")
    return list(splits) if splits else there


def _content_of(image: str) -> bytes | None:
    """The bytes of the file that `image` names; None if it does not name a file."""
    try:
        url = storage.absolute_url(image)
    except UsageError:
        return None
    if not storage.exists(url):
        return None
    if storage.is_folder(url):
        raise UsageError(f"{image} is a folder; one image is required.")
    try:
        return read_file(url)
    except ImageReadError as error:
        raise JobError(f"{image}: {error}.") from error


def _find_row(
    url: str, manifest: FeaturesManifest, image_ids: set[str], paths: set[str], *, must_be_id: bool
) -> tuple[str, RowGroup, int] | None:
    """Split, row group and position of the requested row: the row with the path, or else the first with the image id.

    Args:
        url: URL of the feature set.
        manifest: Its manifest.
        image_ids: Image ids to look for.
        paths: Paths to look for.
        must_be_id: Whether a row with the path must have the image id too, as the file may have changed since.
    """
    of_ids, of_paths = pa.array(sorted(image_ids), pa.string()), pa.array(sorted(paths), pa.string())
    first = None
    for split, group, table in _scan(url, manifest, list(manifest.rows), _KEYS):
        same_id = pc.is_in(table["image_id"], of_ids).to_numpy()
        same_path = pc.is_in(table["path"], of_paths).to_numpy()
        both = same_path & same_id if must_be_id else same_path
        if both.any():
            return split, group, int(both.argmax())
        if first is None and same_id.any():
            first = split, group, int(same_id.argmax())
    return first


def _scan(
    url: str, manifest: FeaturesManifest, splits: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[str, RowGroup, pa.Table]]:
    """Every row group of some splits, with the name of its split."""
    for split in splits:
        groups = list_row_groups(url, manifest, split)
        for group, table in zip(groups, iterate_row_groups(groups, columns), strict=True):
            yield split, group, table


def _image_at(table: pa.Table, row: int, split: str) -> SimilarImage:
    image_id, path, label = (table[name][row].as_py() for name in _FACTS)
    return SimilarImage(image_id, path, label, split, 0.0)
