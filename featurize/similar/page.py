"""The images most similar to one image, as JSON, as a table, and as one HTML file with thumbnails."""

from collections import Counter
from contextlib import closing
from html import escape as escape_html
from typing import Any

from rich.table import Table

from featurize import __version__
from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import Decoder
from featurize.display import as_cell
from featurize.pages.html import render_page
from featurize.pages.thumbnails import data_url, make_thumbnail, read_thumbnails
from featurize.similar.search import Similar, SimilarImage
from featurize.tables.manifests import FeaturesManifest, utc_now

_TEMPLATE = "similar.html"


def similar_document(similar: Similar) -> dict[str, Any]:
    """The result as a JSON-ready dict, which `featurize similar --json` prints."""
    query = similar.query
    return {
        "features": similar.url,
        "image": query.name,
        "image_id": query.image_id,
        "path": query.row.path if query.row is not None else None,
        "label": query.row.label if query.row is not None else None,
        "computed": query.row is None,
        "metric": similar.metric,
        "rows": similar.rows,
        "images": [
            {
                "rank": rank,
                "image_id": image.image_id,
                "path": image.path,
                "label": image.label,
                "split": image.split,
                "distance": image.distance,
            }
            for rank, image in enumerate(similar.images, start=1)
        ],
    }


def similar_table(similar: Similar) -> Table:
    """The result as a table for a terminal."""
    table = Table("", _measure(similar), "label", "split", "path", box=None, padding=(0, 2), header_style="bold")
    for column in table.columns[:2]:
        column.justify = "right"
    table.columns[-1].overflow = "fold"
    root = _root_of(similar.manifest)
    for rank, image in enumerate(similar.images, start=1):
        table.add_row(
            str(rank),
            f"{_value(similar, image):.4f}",
            as_cell(image.label),
            image.split,
            as_cell(image.path.removeprefix(root)),
        )
    return table


def similar_page(similar: Similar) -> str:
    """The result as one HTML file that opens without a network, with thumbnails."""
    query = similar.query
    paths = [image.path for image in similar.images]
    shown_path = query.row.path if query.row is not None else query.name
    thumbnails, reason = read_thumbnails(
        similar.manifest, paths + ([query.row.path] if query.row is not None else []), url=similar.url
    )
    missing = len(set(paths) - thumbnails.keys())
    return render_page(
        _TEMPLATE,
        {
            "title": f"Images like {shown_path.rpartition('/')[2]}",
            "subtitle": f"{len(paths)} of {similar.rows:,} images, by {_measure(similar)}",
            "images_note": f"{missing} images could not be read: {reason}. Only paths are shown for these."
            if missing
            else "",
            "images_root": _root_of(similar.manifest),
            "query": {
                "path": shown_path,
                "label": query.row.label if query.row is not None else "",
                "split": query.row.split if query.row is not None else "",
                "thumbnail": thumbnails.get(shown_path) or _thumbnail_of(query.content),
            },
            "summary": _summary(similar),
            "measure": _measure(similar),
            "images": [
                {
                    "path": image.path,
                    "label": image.label,
                    "split": image.split,
                    "value": _value(similar, image),
                    "thumbnail": thumbnails.get(image.path),
                }
                for image in similar.images
            ],
            "facts": _facts(similar),
            "firn_version": __version__,
            "made_at": utc_now(),
        },
    )


def similar_gallery(similar: Similar) -> str:
    """The result as HTML for a notebook: thumbnails with label, split and distance."""
    paths = [image.path for image in similar.images]
    query = similar.query
    thumbnails, reason = read_thumbnails(
        similar.manifest, paths + ([query.row.path] if query.row is not None else []), url=similar.url
    )
    of_query = thumbnails.get(query.row.path) if query.row is not None else _thumbnail_of(query.content)
    root = _root_of(similar.manifest)
    shown = [(query.row.label if query.row is not None else "", "the query image", query.name, of_query)]
    shown += [
        (
            f"{rank}. {image.label}",
            f"{image.split}, {_measure(similar)} {_value(similar, image):.4f}",
            image.path,
            thumbnails.get(image.path),
        )
        for rank, image in enumerate(similar.images, start=1)
    ]
    note = f"<p>Some images could not be read: {escape_html(reason)}.</p>" if reason is not None else ""
    cells = "".join(_figure(title, text, path.removeprefix(root), picture) for title, text, path, picture in shown)
    return f'<div style="display: flex; flex-wrap: wrap; gap: 12px">{cells}</div>{note}'


def _figure(title: str, text: str, path: str, thumbnail: str | None) -> str:
    """One image of a gallery; a grey field if it could not be read."""
    size = "height: 110px; width: 140px"
    picture = f'<img src="{thumbnail}" alt="" style="{size}; object-fit: contain">' if thumbnail else ""
    field = picture or f'<div style="{size}; background: #8883">no image</div>'
    return (
        f'<figure style="margin: 0; width: 140px; font-size: small; overflow-wrap: anywhere">{field}<figcaption>'
        f"<strong>{escape_html(title)}</strong><br>{escape_html(text)}<br>{escape_html(path)}</figcaption></figure>"
    )


def _measure(similar: Similar) -> str:
    return "cosine" if similar.metric == "cosine" else "distance"


def _value(similar: Similar, image: SimilarImage) -> float:
    """The displayed value: the cosine, 1 for equal directions, or the distance."""
    return 1.0 - image.distance if similar.metric == "cosine" else image.distance


def _summary(similar: Similar) -> str:
    """The number of images for each label, in words."""
    counts = Counter(image.label for image in similar.images).most_common()
    return ", ".join(f"{count} {label}" for label, count in counts) + "."


def _facts(similar: Similar) -> list[tuple[str, str]]:
    manifest, query = similar.manifest, similar.query
    backbone = manifest.backbone
    layer = f" at {backbone['layer']}" if backbone["layer"] else ""
    origin = "computed for this image" if query.row is None else "read from the feature set"
    return [
        ("feature set", similar.url),
        ("its identity", manifest.identity[:16]),
        ("backbone", f"{backbone['name']}{layer}, {backbone['precision']}"),
        ("metric", f"{similar.metric}, exact: every one of {similar.rows:,} rows was compared"),
        ("image_id", query.image_id),
        ("features of the image", origin),
    ]


def _thumbnail_of(content: bytes | None) -> str | None:
    """Thumbnail of the query's file; None if there is none, or it cannot be decoded."""
    if content is None:
        return None
    with closing(Decoder()) as decoder:
        try:
            return data_url(make_thumbnail(content, decoder))
        except DecodeError:
            return None


def _root_of(manifest: FeaturesManifest) -> str:
    """The common beginning of the images' paths, which the page does not repeat for each image."""
    source = (manifest.settings.get("source") or {}).get("source")
    return f"{source}/" if source else ""
