"""The effect of a precision on features, on heads trained on them, and on speed.

For bfloat16: `python benchmarks/featurize.py --precision-check`. For int8, each engine and precision in turn, on ready pixels:

    python benchmarks/precision.py configs/objects_efficientnet_lite0.toml --set images.source=/data/objects
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python benchmarks/precision.py ...    # OpenVINO as without AMX; ONNX Runtime ignores it

ImageNet weights or none: a network that int8 hurts is refused by `featurize run`, and so here. Prints one JSON object.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.images import read_pixels
from featurize.backbones.backbone import QuantizedBackbone, open_backbone
from featurize.backbones.keras_network import make_forward
from featurize.backbones.rebuild import backbone_settings
from featurize.backbones.spec import BackboneSpec
from featurize.engines.engine import NAMES, load_onnx, precisions_of
from featurize.engines.precision import MIN_COSINE, mean_cosine, probe_images
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.training_section import TrainingSettings

if TYPE_CHECKING:
    import keras

MAX_POINTS = 0.5
_FOLDS, _SEEDS, _BATCH = 5, (42, 43, 44), 32
_TURN_S = 0.5  # how long an engine computes before it is the next one's turn
_KINDS = ("float32", "bfloat16", "int8")
# As in configs/demo.toml: it suits features of any scale.
_HEAD = TrainingSettings(optimizer="adam", learning_rate=0.01)

Features = NDArray[np.float32]
Labels = NDArray[np.int32]


def compare_precisions(network: "keras.Model", spec: BackboneSpec, files: Sequence[Path]) -> dict[str, Any]:
    """Compares features of the same images in float32 and in bfloat16, and the accuracy of heads on them.

    Random networks give all images similar features, whose cosines say little; the cosines after subtracting the mean over the
    images say more, and so do the heads.

    Args:
        files: sorted images, in folders named after their classes.
    """
    names, label_index = np.unique([path.parent.name for path in files], return_inverse=True)
    # float32 comes last: the precision holds for the process, and the heads should train in float32.
    rounded = _features(network, replace(spec, precision="bfloat16"), files)
    exact = _features(network, replace(spec, precision="float32"), files)
    mean = exact.mean(axis=0)
    cosine = mean_cosine(exact, rounded)
    scores = {
        name: [_head_accuracy(features, label_index.astype(np.int32), len(names), seed=seed) for seed in _SEEDS]
        for name, features in (("float32", exact), ("bfloat16", rounded))
    }
    points_lost = 100 * float(np.mean(scores["float32"]) - np.mean(scores["bfloat16"]))
    return {
        "images": len(files),
        "classes": len(names),
        "mean_cosine": round(cosine, 6),
        "mean_cosine_without_the_mean": round(mean_cosine(exact - mean, rounded - mean), 6),
        "head_accuracy": {name: [round(score, 4) for score in values] for name, values in scores.items()},
        "points_lost": round(points_lost, 3),
        "goals": {
            f"mean cosine >= {MIN_COSINE}": cosine >= MIN_COSINE,
            f"head within {MAX_POINTS} points": abs(points_lost) <= MAX_POINTS,
        },
    }


def _features(network: "keras.Model", spec: BackboneSpec, files: Sequence[Path]) -> Features:
    forward = make_forward(network, spec)
    batches = (files[i : i + _BATCH] for i in range(0, len(files), _BATCH))
    return np.concatenate([forward(read_pixels(batch, height=spec.height, width=spec.width)) for batch in batches])


def _head_accuracy(features: Features, label_index: Labels, n_classes: int, *, seed: int) -> float:
    """Accuracy of Firn's softmax head by cross-validation: every image is predicted by a head that has not seen it."""
    from finetune.networks.build import build_model
    from finetune.networks.forward import predict_probabilities
    from finetune.rows.loader import MemoryData
    from finetune.rows.splits import SplitData
    from finetune.training.loop import fit

    fold = np.arange(len(features)) % _FOLDS  # sorted by class, so each fold has its share of every class

    def rows(where: NDArray[np.bool_]) -> MemoryData:
        numbers = np.flatnonzero(where)
        paths = pa.array(numbers.astype(str), pa.large_string())
        return MemoryData(SplitData(features[where], label_index[where], paths, numbers.astype(np.int64)))

    right = 0
    for number in range(_FOLDS):
        test, validation = fold == number, fold == (number + 1) % _FOLDS
        model = build_model(
            ModelSettings(url="-"),
            feature_shape=features.shape[1:],
            feature_dtype="float32",
            n_classes=n_classes,
            seed=seed,
        )
        settings = _HEAD.model_copy(update={"seed": seed})
        trained = fit(model, rows(~test & ~validation), rows(validation), settings).model
        right += int(np.sum(predict_probabilities(trained, features[test]).argmax(axis=1) == label_index[test]))
    return right / len(features)


def measure_int8(recipe: str, overrides: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """Makes the recipe's features in int8, and lets every engine compute the network in every precision, one after the other."""
    import featurize

    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        mine = [f"features.url={folder}/features", "backbone.precision=int8"]
        features = featurize.run(recipe, overrides=[*overrides, *mine])
        opened = open_backbone(backbone_settings(features.url, features.manifest), folder)
        assert isinstance(opened, QuantizedBackbone)
        base = opened.base.file("onnxruntime").rename(Path(folder, "float32.onnx"))
        int8 = opened.file("onnxruntime")
        images = np.resize(
            probe_images(height=opened.spec.height, width=opened.spec.width), (_BATCH, *_shape(opened.spec))
        )
        forwards = {}
        for engine in opened.engines():
            for precision in (*precisions_of(engine), "int8"):
                file = int8 if precision == "int8" else base
                load = load_onnx(file, engine, precision=precision, threads=threads, batch_size=_BATCH)
                forwards[f"{NAMES[engine]} {precision}"] = load
        rates: dict[str, list[float]] = {name: [] for name in forwards}
        for number in range(rounds + 1):
            for name, forward in forwards.items():
                started, passes = perf_counter(), 0
                while passes == 0 or perf_counter() - started < _TURN_S:
                    forward(images)
                    passes += 1
                if number:  # the first round only warms up
                    rates[name].append(passes * _BATCH / (perf_counter() - started))
    medians = {name: round(median(values), 1) for name, values in rates.items()}
    best = {kind: max((rate for name, rate in medians.items() if name.endswith(kind)), default=0.0) for kind in _KINDS}
    gains = {kind: round(best["int8"] / rate, 2) for kind, rate in best.items() if rate and kind != "int8"}
    return {"images_per_second": medians, "int8_is_times": gains, **features.manifest.backbone["quantization"]}


def _shape(spec: BackboneSpec) -> tuple[int, int, int]:
    return spec.height, spec.width, spec.channels


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures int8 beside the other precisions; prints one JSON object.")
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(json.dumps(measure_int8(options.recipe, options.overrides, rounds=options.rounds)))


if __name__ == "__main__":
    main()
