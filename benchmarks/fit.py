"""Speed of training: time to the same accuracy beside other libraries, and rows per second by batch size and ranks.

    featurize run configs/objects_mobilenet.toml && python benchmarks/fit.py [--markdown] [--rounds N] [--only accuracy|rates]
    python benchmarks/fit.py --fast

Time to the same accuracy, on the features of RECIPE, and on 30,000 random rows of 4,096 features and 257 classes, for

- firn_1 and firn_2: Firn's training on one rank with all cores, and on two of horovodrun with half the cores and half the batch
- keras: `keras.Model.fit` on arrays in memory, with the same model, optimizer, penalty and batch size
- scikit_learn, mllib: `LogisticRegression` of scikit-learn and of Spark MLlib, by L-BFGS, stopped after more and more iterations

The accuracy is that on the validation rows; the target is 0.99 times the highest that scikit-learn reaches. All have the features
in memory, in their own form, before the clock starts, and have trained before in the same process. The time of Firn and of Keras
includes building the graphs of a new model, and validation after every epoch; that of the others does not.

Rows per second are those of an epoch without its validation, on rows in memory, for each batch size and number of ranks. Each of
`--rounds` rounds measures everything in turn; a ratio is the median over rounds of the ratio within a round.
Prints one JSON object; with --markdown the table of rows per second instead.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from benchmarks.fit_data import copy_features, make_features, write_parquet
from benchmarks.fit_rates import BATCHES, NETS, WAYS, goals_met, markdown, measure_rates, summarize
from benchmarks.fit_ways import train_firn, train_keras, train_mllib, train_scikit_learn
from featurize.recipes.recipe import read_recipe
from featurize.recipes.training_section import TrainingSettings

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0))
RECIPE = ROOT / "configs" / "objects_mobilenet.toml"
PARTS = ("scikit_learn", "firn_1", "keras", "firn_2", "mllib")  # the first sets the target
TARGET = 0.99
OBJECTS_EPOCHS = (
    8  # of the 60 of the recipe, over which its cosine runs out: as few as reach the target, for Keras as for Firn
)


def run_part(task: dict[str, Any], *, ranks: int = 1) -> Any:
    """Runs a part of the work in processes of its own, and returns what `work` returns there."""
    launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(ranks), "--gloo"] if ranks > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": str(task["threads"])}
    command = [*launcher, sys.executable, __file__, "--part", json.dumps(task)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    marked = [line for line in done.stdout.splitlines() if "result: " in line]  # horovodrun puts the rank before it
    return json.loads(marked[-1].split("result: ", 1)[1])


def work(task: dict[str, Any]) -> Any:
    """The work of a part, in its own process; None on ranks other than 0."""
    threads = task["threads"]
    if task["part"] == "rates":
        return measure_rates(task["nets"], task["batches"], threads=threads, rows=task["rows"])
    if task["part"] == "scikit_learn":
        return train_scikit_learn(task)
    if task["part"] == "mllib":
        return train_mllib(task)
    return train_keras(task, threads=threads) if task["part"] == "keras" else train_firn(task, threads=threads)


def compare_times(task: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Time to the target for each way on the same features."""
    target, runs = 0.0, dict[str, list[Any]]()
    for part in PARTS * rounds:
        ranks = 2 if part == "firn_2" else 1
        curve = run_part({**task, "part": part, "target": target, "threads": max(1, CORES // ranks)}, ranks=ranks)
        target = target or TARGET * max(accuracy for _, accuracy in curve)
        seconds = next((spent for spent, accuracy in curve if accuracy >= target), None)
        run = {"seconds": seconds, "best_accuracy": max(accuracy for _, accuracy in curve), "curve": curve}
        say(f"{part} on {task['feature_dim']} x {task['n_classes']}: {seconds and round(seconds, 2)} s to {target:.3f}")
        runs.setdefault(part, []).append(run)
    times = {part: [run["seconds"] for run in done] for part, done in runs.items()}
    ratios = {f"{part} / firn_1": ratio(times[part], times["firn_1"]) for part in PARTS if part != "firn_1"}
    keras_over_firn, mllib_over_firn = ratios["keras / firn_1"], ratios["mllib / firn_1"]
    return {
        **{key: task[key] for key in ("rows", "feature_dim", "n_classes", "training", "C")},
        "target_accuracy": target,
        **{part: {**done[-1], "seconds_of_rounds": times[part]} for part, done in runs.items()},
        "ratios": ratios,
        "goals": {
            "5 times as fast as MLlib": (mllib_over_firn or 0) >= 5,
            "not slower than Keras": (keras_over_firn or 0) >= 1,
        },
    }


def ratio(others: list[float | None], own: list[float | None]) -> float | None:
    """The median ratio of seconds, infinite for a way that has not reached the target; None if neither has."""
    pairs = [(theirs or math.inf, ours or math.inf) for theirs, ours in zip(others, own, strict=True)]
    values = [theirs / ours for theirs, ours in pairs if math.isfinite(theirs) or math.isfinite(ours)]
    return median(values) if values else None


def measure_ranks(rounds: int, *, fast: bool) -> dict[str, Any]:
    groups = [["4,096 x 257 head", "mnist_convnet"]] if fast else [[net] for net in NETS]
    batches, done = (64, 512) if fast else BATCHES, []
    for _ in range(rounds):
        cells = []
        for nets in groups:
            for way, (ranks, has_all_cores) in WAYS.items():
                threads = CORES if has_all_cores else 1
                task = {
                    "part": "rates",
                    "nets": nets,
                    "batches": batches,
                    "threads": threads,
                    "rows": 512 if fast else None,
                }
                cells += [{**cell, "way": way} for cell in run_part(task, ranks=ranks)]
                say(f"{', '.join(nets)}: {way} done")
        done.append(cells)
    cells, ratios = summarize(done)
    return {"rates": cells, "ratios_of_rounds": ratios, "goals": goals_met(ratios)}


def make_tasks(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The features to train on, and the settings of the training, by name."""
    of_recipe = read_recipe(options.recipe, options.overrides)
    head = {"optimizer": "sgd", "learning_rate": 0.02, "momentum": 0.8, "batch_size": 128, "epochs": 10}
    if options.fast:
        about = make_features(2000, 256, 20, folder / "small")
        tasks = {"small": {**about, "training": head | {"learning_rate": 0.1}, "C": 0.01, "iterations": [5, 20]}}
    else:
        if of_recipe.features is None:
            raise SystemExit(f"{options.recipe} needs a section [features]")
        about = copy_features(of_recipe.features.url, folder / "objects")
        training = of_recipe.training.model_dump(exclude_defaults=True) | {"epochs": OBJECTS_EPOCHS}
        tasks = {"objects": {**about, "training": training, "C": 0.1, "iterations": [5, 10, 20, 40, 80, 160]}}
        about = make_features(30_000, 4096, 257, folder / "made_up")
        tasks["made_up"] = {**about, "training": head, "C": 0.001, "iterations": [5, 10, 20, 40]}
    for name, task in tasks.items():
        TrainingSettings(**task["training"])
        write_parquet(folder / name)
        task["folder"] = str(folder / name)
    return tasks


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def to_digits(value: Any) -> Any:
    """`value` with numbers rounded to four significant digits, as no measurement here has more."""
    if isinstance(value, dict):
        return {key: to_digits(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_digits(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None  # JSON has no infinity
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default=str(RECIPE), help="recipe of the features and the training")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="overrides a key of the recipe",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["accuracy", "rates"], help="only one of the two measurements")
    parser.add_argument("--fast", action="store_true", help="one round on few rows, to try it out")
    parser.add_argument("--markdown", action="store_true", help="print the table of rows per second")
    parser.add_argument("--part", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        result = work(options.part)
        if result is not None:
            print("result: " + json.dumps(result), flush=True)
        return
    rounds = 1 if options.fast else options.rounds
    results: dict[str, Any] = {"cores": CORES, "load_average_before": os.getloadavg()[0], "rounds": rounds}
    if options.only != "rates":
        with tempfile.TemporaryDirectory(prefix="firn-") as folder:
            tasks = make_tasks(Path(folder), options)
            results["accuracy"] = {name: compare_times(task, rounds) for name, task in tasks.items()}
    if options.only != "accuracy":
        results["ranks"] = measure_ranks(rounds, fast=options.fast)
    if options.markdown and "ranks" in results:
        print(markdown(results["ranks"]["rates"]))
    else:
        print(json.dumps(to_digits(results)))


if __name__ == "__main__":
    main()
