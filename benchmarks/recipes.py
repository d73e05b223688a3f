"""The test accuracy of a recipe: mean and standard deviation over three seeds.

    python benchmarks/recipes.py configs/landscapes_mobilenet.toml configs/landscapes_convnet.toml
    python benchmarks/recipes.py configs/mnist_convnet.toml --ranks 2 --set features.url=/data/mnist/features

Each recipe's feature set must exist (`featurize run RECIPE`). The seeds are the recipe's own and those after it. Every training
is the command `finetune fit` in a process of its own, with a temporary output folder. With --ranks N the first seed is trained
once more on N ranks of horovodrun, each with 1/N of the batch. A softmax head on features of a network is compared with
scikit-learn's LogisticRegression on the same features and splits, with C tuned on the validation split. Prints one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from sklearn.linear_model import LogisticRegression

from featurize.errors import UsageError
from featurize.recipes.recipe import FinetuneRecipe, lower_half, read_recipe
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import read_features_manifest
from finetune.models.folder import load_model
from finetune.rows.splits import SplitData, read_split

ROOT = Path(__file__).resolve().parent.parent
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def tuned_regression(url: str, manifest: FeaturesManifest) -> dict[str, float]:
    """LogisticRegression with the best C on the validation split."""
    train, validation, test = (read_split(url, manifest, split) for split in ("train", "validation", "test"))
    started = perf_counter()
    models = {c: LogisticRegression(C=c, max_iter=1000).fit(train.features, train.label_index) for c in STRENGTHS}
    best = max(models, key=lambda c: accuracy(models[c], validation))
    return {
        "C": best,
        "validation_accuracy": accuracy(models[best], validation),
        "test_accuracy": accuracy(models[best], test),
        "seconds_of_all_C": perf_counter() - started,
    }


def accuracy(model: LogisticRegression, data: SplitData) -> float:
    return float(np.mean(model.predict(data.features) == data.label_index))


def trained(path: str, overrides: list[str], *, url: str, seed: int, batch_size: int, ranks: int = 1) -> dict[str, Any]:
    """Trains with `finetune fit` and evaluates on the test split."""
    settings = [*overrides, f"model.url={url}", f"training.seed={seed}", f"training.batch_size={batch_size}"]
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(ranks), "--gloo"] if ranks > 1 else []
    arguments = [word for setting in settings for word in ("--set", setting)]
    fitted = run_json([*launcher, sys.executable, "-m", "finetune", "fit", path, "--json", *arguments])
    tested = run_json([sys.executable, "-m", "finetune", "evaluate", url, "--split", "test", "--json"])
    result = {
        "seed": seed,
        "ranks": ranks,
        "test_accuracy": tested["accuracy"],
        "validation_accuracy": fitted["metrics"].get("validation_accuracy"),
        "epochs": fitted["epochs"],
        "best_epoch": fitted["best_epoch"],
        "rows_per_second": fitted["rows_per_second"],
        "seconds": fitted["seconds_of_command"],
    }
    print(f"{path}: {json.dumps(result)}", file=sys.stderr, flush=True)
    return result


def run_json(command: list[str]) -> dict[str, Any]:
    """Runs a command whose last line is a JSON object (after a prefix, if horovodrun adds one)."""
    started = perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    lines = [line[line.index("{") :] for line in done.stdout.splitlines() if "{" in line]
    result: dict[str, Any] = json.loads(lines[-1])
    return {**result, "seconds_of_command": perf_counter() - started}


def compare(path: str, overrides: list[str], *, n_seeds: int, ranks: int) -> dict[str, Any]:
    recipe = lower_half(read_recipe(path, overrides), origin=path)
    manifest = read_features_manifest(recipe.features.url)
    first, batch_size = recipe.training.seed, recipe.training.batch_size
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        runs = [
            trained(path, overrides, url=f"{folder}/{seed}", seed=seed, batch_size=batch_size)
            for seed in range(first, first + n_seeds)
        ]
        scores = [run["test_accuracy"] for run in runs]
        result = {
            "rows": {split: manifest.split_rows(split) for split in manifest.rows},
            "precision": manifest.backbone["precision"],
            "test_accuracy_mean": mean(scores),
            "test_accuracy_sd": stdev(scores) if n_seeds > 1 else None,
            "runs": runs,
        }
        if ranks > 1:
            result["on_ranks"] = on_ranks(path, overrides, recipe, folder=folder, ranks=ranks)
    if recipe.model.name == "softmax_head" and manifest.feature_dtype == "float32":
        regression = tuned_regression(recipe.features.url, manifest)
        result["logistic_regression"] = regression
        result["points_below"] = 100 * (regression["test_accuracy"] - mean(scores))
    return result


def on_ranks(path: str, overrides: list[str], recipe: FinetuneRecipe, *, folder: str, ranks: int) -> dict[str, Any]:
    """Trains the first seed on several ranks, and compares its weights with those from one rank."""
    seed, batch_size = recipe.training.seed, recipe.training.batch_size
    if batch_size % ranks:
        raise UsageError(f"--ranks must divide `training.batch_size`, {batch_size}. Got {ranks}.")
    url = f"{folder}/{seed}-on-{ranks}"
    run = trained(path, overrides, url=url, seed=seed, batch_size=batch_size // ranks, ranks=ranks)
    (one, _), (many, _) = load_model(f"{folder}/{seed}"), load_model(url)
    pairs = zip(one.get_weights(), many.get_weights(), strict=True)
    return {**run, "largest_difference_of_weights": max(float(np.abs(a - b).max()) for a, b in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--ranks", type=int, default=1, help="also train the first seed on this many ranks")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="overrides a key"
    )
    options = parser.parse_args()
    results = {
        path: compare(path, options.overrides, n_seeds=options.seeds, ranks=options.ranks) for path in options.recipes
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
