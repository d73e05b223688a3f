"""Noisy pictures of one colour, in a folder for each class."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_photos(
    folder: Path, *, per_class: int, classes: tuple[str, ...] = ("blue", "green", "red"), seed: int = 0
) -> None:
    """Writes `per_class` noisy pictures of one colour into a folder for each of the classes."""
    random = np.random.default_rng(seed)
    colours = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            height, width = random.integers(20, 60, 2)
            pixels = (
                random.normal(colours.get(label, (128, 128, 128)), 40, (height, width, 3)).clip(0, 255).astype(np.uint8)
            )
            Image.fromarray(pixels).save(folder / label / f"{index:03d}.png")
