"""Images per second of `finetune predict`, and seconds of a stream with one batch, beside `featurize run` on the same images.

    python benchmarks/predict.py configs/objects_mobilenet.toml [--rounds N] [--set KEY=VALUE ...]

Each is the command in a process of its own, with an empty output, one after the other in every round. Steady rates are
those of the Spark job, without the time in which its workers start and load the network; a stream reports only its total seconds,
which are given for each. The model is a head trained for one epoch. Prints one JSON object: medians, and the median over rounds
of the ratio to `featurize run`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from featurize.recipes.recipe import read_recipe

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("featurize run", "finetune predict", "finetune stream")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    images = read_recipe(arguments.recipe, arguments.set).images
    if images is None:
        parser.error(f"{arguments.recipe} names no images")
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        rounds = [
            measure(arguments.recipe, arguments.set, images.source, Path(folder, str(number)))
            for number in range(arguments.rounds)
        ]
    print(json.dumps({"recipe": arguments.recipe, "rounds": len(rounds), **summarize(rounds)}))


def measure(recipe: str, overrides: Sequence[str], source: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The result that each command prints, in one round."""
    settings = [part for override in overrides for part in ("--set", override)]
    settings += ["--set", f"features.url={folder}/features", "--set", f"model.url={folder}/model"]
    done = {"featurize run": call("featurize", "run", recipe, *settings)}
    call("finetune", "fit", recipe, *settings, "--set", "training.epochs=1")
    model = [f"{folder}/model", "--images", source]
    done["finetune predict"] = call("finetune", "predict", *model, "--output", f"{folder}/predicted")
    places = ["--output", f"{folder}/streamed", "--checkpoint", f"{folder}/checkpoint"]
    done["finetune stream"] = call("finetune", "stream", *model, *places, "--once")
    return done


def call(package: str, *arguments: str) -> dict[str, Any]:
    """The result of a command."""
    command = [sys.executable, "-m", package, *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summarize(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    first = WAYS[0]
    summary: dict[str, Any] = {"images": rounds[0][first]["rows"] + rounds[0][first]["rejects"]}
    for way in WAYS:
        summary[way] = {"seconds": median(done[way]["seconds"] for done in rounds)}
        if "steady_images_per_second" in rounds[0][way]:
            rates = [done[way]["steady_images_per_second"] for done in rounds]
            ratios = [
                done[way]["steady_images_per_second"] / done[first]["steady_images_per_second"] for done in rounds
            ]
            summary[way] |= {"steady_images_per_second": median(rates), "ratio": round(median(ratios), 3)}
    return summary


if __name__ == "__main__":
    main()
