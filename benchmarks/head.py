"""Accuracy of Firn's softmax head beside scikit-learn's LogisticRegression on the same features and splits.

    python benchmarks/head.py configs/objects_mobilenet.toml configs/landscapes_mobilenet.toml

Each recipe's feature set must be there (`featurize run RECIPE`). LogisticRegression's C is tuned on the validation split. The
head is trained with three seeds, each the recipe's own and two after it. Prints one JSON object.
"""

import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # beside this file lies another `featurize`
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from sklearn.linear_model import LogisticRegression

from featurize.manifests import read_features_manifest
from featurize.recipe import FinetuneRecipe, lower_half, read_recipe
from finetune.fit import fit
from finetune.loader import MemoryData
from finetune.models import build_model
from finetune.split_data import SplitData, read_split
from finetune.steps import predict_probabilities

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SEEDS = 3


def accuracy(predicted: Any, data: SplitData) -> float:
    return float(np.mean(predicted == data.label_index))


def tuned_regression(train: SplitData, validation: SplitData, test: SplitData) -> dict[str, float]:
    started = perf_counter()
    models = {c: LogisticRegression(C=c, max_iter=1000).fit(train.features, train.label_index) for c in STRENGTHS}
    best = max(models, key=lambda c: accuracy(models[c].predict(validation.features), validation))
    return {
        "C": best,
        "validation_accuracy": accuracy(models[best].predict(validation.features), validation),
        "test_accuracy": accuracy(models[best].predict(test.features), test),
        "seconds_all_C": round(perf_counter() - started, 1),
    }


def trained_heads(recipe: FinetuneRecipe, train: SplitData, validation: SplitData, test: SplitData) -> dict[str, Any]:
    manifest = read_features_manifest(recipe.features.url)
    scores, seconds = [], []
    for seed in range(recipe.training.seed, recipe.training.seed + SEEDS):
        model = build_model(
            recipe.model,
            feature_shape=manifest.feature_shape,
            feature_dtype=manifest.feature_dtype,
            n_classes=len(manifest.classes),
            seed=seed,
        )
        started = perf_counter()
        result = fit(
            model, MemoryData(train), MemoryData(validation), recipe.training.model_copy(update={"seed": seed})
        )
        seconds.append(round(perf_counter() - started, 1))
        scores.append(accuracy(predict_probabilities(result.model, test.features).argmax(1), test))
    return {
        "test_accuracy": scores,
        "test_accuracy_mean": float(np.mean(scores)),
        "test_accuracy_sd": float(np.std(scores, ddof=1)),
        "seconds": seconds,
    }


def compare(path: str) -> dict[str, Any]:
    recipe = lower_half(read_recipe(path), origin=path)
    manifest = read_features_manifest(recipe.features.url)
    data = [read_split(recipe.features.url, manifest, split) for split in ("train", "validation", "test")]
    regression, heads = tuned_regression(*data), trained_heads(recipe, *data)
    return {
        "precision": manifest.backbone["precision"],
        "rows": [part.rows for part in data],
        "logistic_regression": regression,
        "softmax_head": heads,
        "points_below": round(100 * (regression["test_accuracy"] - heads["test_accuracy_mean"]), 2),
    }


if __name__ == "__main__":
    print(json.dumps({path: compare(path) for path in sys.argv[1:]}))
