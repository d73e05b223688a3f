"""Which way from a picture to the input of a network suits some photographs: accuracy of logistic regression on its features.

    python benchmarks/decoding/ways.py ../shared/data/objects [--backbone EfficientNetLite0] [--layer avg_pool] [--c 0.02]

For each way of `images.resize`, and stretching with the bicubic filter, it prints the mean accuracy over some divisions into 60 %
training and 40 % test rows, and the standard error of that mean. Four minutes for each way of 2,853 images, beside other work.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.images import image_files
from featurize.backbones.backbone import load_backbone, prepare_backbone
from featurize.decoding.decode import decode_image
from featurize.recipes.backbone_section import BackboneSettings

WAYS: Mapping[str, Mapping[str, Any]] = {
    "trained": {"resize": "trained"},
    "stretch": {"resize": "stretch"},
    "stretch, bicubic": {"resize": "stretch", "interpolation": "bicubic"},
    "crop": {"resize": "crop"},
    "pad": {"resize": "pad"},
}
BATCH = 16
TRAINING = 0.6


def features_of(files: Sequence[Path], settings: BackboneSettings) -> NDArray[np.float32]:
    """The features of some images, ``float32 (n, dim)``, divided by their standard deviation."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_backbone(settings, folder)
        forward = load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256, batch_size=BATCH)
        rows = []
        for start in range(0, len(files), BATCH):
            batch = [decode_image(path.read_bytes(), **prepared.spec.decoding) for path in files[start : start + BATCH]]
            rows.append(np.asarray(forward(np.stack(batch))).reshape(len(batch), -1))
    features = np.concatenate(rows)
    scaled: NDArray[np.float32] = features / features.std()
    return scaled


def accuracies(features: NDArray[np.float32], labels: NDArray[np.str_], *, c: float, divisions: int) -> list[float]:
    """The accuracy on the test rows of each division."""
    found = []
    for seed in range(divisions):
        is_training = np.random.default_rng(seed).random(len(labels)) < TRAINING
        model = LogisticRegression(C=c, max_iter=200).fit(features[is_training], labels[is_training])
        found.append(float((model.predict(features[~is_training]) == labels[~is_training]).mean()))
    return found


def main(
    images: Annotated[Path, typer.Argument(help="a folder of images for each class")],
    backbone: str = "EfficientNetLite0",
    layer: str = "avg_pool",
    c: float = 0.02,
    divisions: int = 4,
) -> None:
    """Compares the ways."""
    files = image_files(images)
    labels = np.array([path.parent.name for path in files])
    for name, way in WAYS.items():
        settings = BackboneSettings(name=backbone, layer=layer, precision="float32", **way)
        found = accuracies(features_of(files, settings), labels, c=c, divisions=divisions)
        error = float(np.std(found, ddof=1) / np.sqrt(divisions))
        print(f"{name:18} {np.mean(found):.4f} +- {error:.4f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
