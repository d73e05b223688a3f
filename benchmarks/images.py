"""Images for the benchmarks: links to real ones in class folders, or drawn ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurize.decoding.decode import decode_image
from featurize.sources.scenes import SCENE_CLASSES, draw_scene, encode_scene

_DRAWN_HEIGHT, _DRAWN_WIDTH = 240, 320


def image_files(folder: str | Path) -> list[Path]:
    """The images in a folder per class, sorted by class."""
    return sorted(path for path in Path(folder).glob("*/*") if path.is_file())


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of `paths`, at equal distances: if they are sorted by class, each class has its share."""
    count = min(count, len(paths))
    return [paths[len(paths) * i // count] for i in range(count)]


def read_pixels(paths: Sequence[Path], *, height: int, width: int) -> NDArray[np.uint8]:
    """``uint8 (n_images, height, width, 3)``."""
    return np.stack([decode_image(path.read_bytes(), height=height, width=width) for path in paths])


def link_classes(sources: Sequence[str], folder: Path) -> Path:
    """Makes one folder with a link to each class folder in `sources`, named after the source and the class."""
    folder.mkdir()
    for source in (Path(source).resolve() for source in sources):
        for label in (inner for inner in sorted(source.iterdir()) if inner.is_dir()):
            (folder / f"{source.name}-{label.name}").symlink_to(label)
    return folder


def link_part(images: Path, count: int, folder: Path) -> Path:
    """Makes a folder per class that holds `count` of the images."""
    for path in spread(image_files(images), count):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).symlink_to(path)
    return folder


def draw_images(count: int, folder: Path) -> Path:
    """Makes a folder per class of drawn scenes."""
    for label in SCENE_CLASSES:
        (folder / label).mkdir(parents=True)
    for index in range(count):
        label = SCENE_CLASSES[index % len(SCENE_CLASSES)]
        scene = draw_scene(label, seed=0, index=index, height=_DRAWN_HEIGHT, width=_DRAWN_WIDTH)
        (folder / label / f"{index:06d}.jpg").write_bytes(encode_scene(scene))
    return folder
