"""Splits by hash: stable as a set grows; images with equal bytes are always in the same split."""

import hashlib
from dataclasses import dataclass

from featurize.recipes.recipe import FractionSplit

_UNIT = float(1 << 64)
DEFAULT_VALIDATION_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Assigns images to splits; sent to the workers.

    `fractions` divides all images. Where it is None the source's own splits are kept, and `validation_fraction` of train is
    set aside as validation, by the same hash.
    """

    fractions: FractionSplit | None
    validation_fraction: float = 0.0
    seed: int = FractionSplit().seed

    def assign(self, image_id: str, own_split: str | None) -> str:
        """The split of an image."""
        if self.fractions is not None:
            return split_by_fractions(image_id, self.fractions)
        if own_split is None:
            raise ValueError("`fractions` is required for an image without a split of its own.")
        set_aside = own_split == "train" and hash_to_unit(image_id, self.seed) < self.validation_fraction
        return "validation" if set_aside else own_split


def hash_to_unit(image_id: str, seed: int) -> float:
    """A number in [0, 1) from `image_id` and `seed`, uniform over image ids: the first 64 bits of their SHA-256."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11 << 11) / _UNIT  # 53 bits, which a float holds: never rounded to 1.0


def split_by_fractions(image_id: str, fractions: FractionSplit) -> str:
    """``train``, ``validation`` or ``test``. Growing one fraction at its end moves only the images that it gains."""
    position = hash_to_unit(image_id, fractions.seed)
    if position < fractions.train:
        return "train"
    # Added first, as 0.6 + 0.2 + 0.2 is not 1 in floating point, and rounding must not make a tiny test split.
    return "validation" if position < fractions.train + fractions.validation or fractions.test == 0 else "test"
