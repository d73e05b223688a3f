"""The images nearest to one image, in Python: a table, with thumbnails in a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.display import plain_text
from featurize.errors import UsageError
from featurize.similar.nearest import METRICS, Metric
from featurize.similar.page import similar_document, similar_gallery, similar_page, similar_table
from featurize.similar.search import Similar
from featurize.similar.search import find_similar as search_features

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

    from featurize.jobs.features import Features

_MOST = 10_000  # images in a result


@dataclass(frozen=True, repr=False)
class SimilarImages(Similar):
    """The images nearest to one image, the nearest first. Its `repr` is a table; in a notebook it shows thumbnails.

    Attributes:
        url: URL of the feature set that was searched.
        manifest: manifest of the feature set.
        query: the image that the others were compared with.
        metric: "cosine" or "euclidean".
        rows: number of images that were compared.
        images: the images that were found; their `distance` is 1 minus the cosine, in [0, 2], or the Euclidean distance.
    """

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each image: rank, image_id, path, label, split, distance."""
        import pandas as pd

        columns = ("rank", "image_id", "path", "label", "split", "distance")
        return pd.DataFrame(self.as_dict()["images"], columns=list(columns))

    def as_dict(self) -> dict[str, Any]:
        """The result as a JSON-ready dict, which `featurize similar --json` prints."""
        return similar_document(self)

    def write_page(self, url: str | Path) -> str:
        """Writes one HTML file with thumbnails, which opens without a network, and returns its URL."""
        absolute = storage.absolute_url(str(url))
        storage.write_bytes(absolute, similar_page(self).encode())
        return absolute

    def __repr__(self) -> str:
        return plain_text(self.__rich__())

    def __rich__(self) -> "RenderableType":
        return similar_table(self)

    def _repr_html_(self) -> str:
        return similar_gallery(self)


def find_similar(
    features: "str | Path | Features",
    image: str | Path,
    *,
    k: int = 10,
    metric: Metric = "cosine",
    splits: Sequence[str] | None = None,
    column: str | None = None,
) -> SimilarImages:
    """Finds the `k` images of a feature set that are nearest to `image`, exactly: every row is compared.

    Args:
        features: the feature set, or its URL.
        image: an image file or its URL, or the `image_id` or `path` of a row. A file whose bytes are in the set is looked up;
            any other goes through the backbone that made the features. The image itself is left out of the result.
        k: number of images to find, 1 to 10,000.
        metric: "cosine" or "euclidean".
        splits: the splits to search; None: all.
        column: the column of features to compare; None: the only one.

    Raises:
        UsageError: there is no such feature set, split, column or image; or the backbone cannot be rebuilt identically.
        JobError: a file is missing or damaged, or the image cannot be decoded or compared.
    """
    if not 1 <= k <= _MOST:
        raise UsageError(f"`k` must be in [1, {_MOST}]. Got {k!r}.")
    if metric not in METRICS:
        raise UsageError(f"`metric` must be one of {', '.join(METRICS)}. Got {metric!r}.")
    url = str(features) if isinstance(features, str | Path) else features.url
    found = search_features(url, str(image), k=k, metric=metric, splits=splits, column=column)
    return SimilarImages(found.url, found.manifest, found.query, found.metric, found.rows, found.images)
