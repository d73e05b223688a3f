"""The predictions of models for the rows of a split, those that a model's query selects, checked, a row group at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featurize.errors import UsageError
from featurize.tables.manifests import FeaturesManifest
from finetune.models.folder import ModelCard, check_features
from finetune.networks.forward import predict_probabilities
from finetune.rows.row_query import read_selected_by_model
from finetune.rows.splits import SplitData, iterate_split

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, eq=False)
class SplitRows:
    """The rows of one split by which models are judged; `open_split_rows` makes it.

    Attributes:
        url: URL of the feature set.
        manifest: Its manifest, with the rows that the query selects.
        split: Name of the split.
    """

    url: str
    manifest: FeaturesManifest
    split: str

    @property
    def count(self) -> int:
        """Number of rows, at least 1."""
        return self.manifest.split_rows(self.split)

    def parts(self) -> Iterator[SplitData]:
        """The rows, a row group at a time, in the order of the files.

        Raises:
            JobError: A file is missing or damaged.
        """
        yield from iterate_split(self.url, self.manifest, self.split)

    def answers(self, networks: "Sequence[keras.Model]") -> Iterator[tuple[SplitData, tuple[NDArray[np.float32], ...]]]:
        """Each of `parts`, with the probabilities of each network, float32 ``(n_images, n_classes)``.

        Raises:
            JobError: A file is missing or damaged.
        """
        for part in self.parts():
            yield part, tuple(predict_probabilities(network, part.features) for network in networks)


def open_split_rows(
    cards: Sequence[ModelCard], split: str, *, url: str | None = None, all_rows: bool = False, purpose: str = ""
) -> SplitRows:
    """The rows of a split that the query of the first model selects, checked to fit all models.

    Args:
        cards: The models' descriptions, at least one.
        split: Name of the split.
        url: URL of the feature set; default: the one that the first model was trained on.
        all_rows: Whether to take all rows, whatever the query selects.
        purpose: For the message about a split without rows: what they are needed for, as in "to choose a threshold".

    Raises:
        UsageError: There is no feature set; its features are of another backbone or have other classes than a model; the query
            cannot be run there; or the split has no rows.
        JobError: Files are damaged.
    """
    chosen = url or cards[0].features.url
    manifest = read_selected_by_model(cards[0], chosen, all_rows=all_rows)
    for card in cards:
        check_features(card, chosen, manifest)
    rows = SplitRows(chosen, manifest, split)
    if not rows.count:
        raise UsageError(_no_rows(rows, purpose))
    return rows


def _no_rows(rows: SplitRows, purpose: str) -> str:
    with_rows = ", ".join(name for name in rows.manifest.rows if rows.manifest.split_rows(name))
    left_out = rows.manifest.edits.left_out.get(rows.split, 0) if rows.manifest.edits is not None else 0
    hint = f" that the model's `where` selects; evaluate with `all_rows=True` (--all-rows) to use all {left_out}"
    fault = f"{rows.url}: split {rows.split!r} has no rows{hint if left_out else ''}."
    return f"{fault} {f'They are needed {purpose}. ' if purpose else ''}Splits with rows: {with_rows}."
