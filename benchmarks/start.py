"""How long a command takes until its work begins, beside the imports and Spark session that it needs, in the same run.

    python benchmarks/start.py [--rounds 5] [--images 16]

- `run`: `featurize run` until the first shard of a small set of drawn images is written (MobileNet, random weights, float32).
- `fit`: `finetune fit`, one rank, until the network of its first epoch is saved: a head, with one step, on these features.
- `tensorflow`: `import tensorflow`, which includes Keras. `spark`: a bare local session that counts one row.
- `help`, `version`: `featurize --help`, `finetune --version`; `typer`: `--help` of a program with one empty command.

Each is a process of its own; seconds count from its start. Prints one JSON object: medians, and the ratios of `run` to the longer
of `tensorflow` and `spark`, of `fit` to `tensorflow`, and of `help` and `version` to `typer`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file's folder has another `featurize`

from benchmarks.images import draw_images
from featurize.building.session import find_java

_TENSORFLOW = "import time, tensorflow; print(time.time())"
_SPARK = """
import time
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[*]").config("spark.ui.enabled", "false").getOrCreate()
spark.range(1).count()
print(time.time())
"""
_TYPER = """
import typer
app = typer.Typer(add_completion=False)
@app.command()
def work(name: str = "x") -> None:
    "Does nothing."
app()
"""
_RECIPE = """
[images]
source = "images"
[backbone]
name = "MobileNet"
layer = "global_average_pooling2d"
weights = "random"
precision = "float32"
[features]
url = "features"
[model]
name = "softmax_head"
url = "model"
[training]
optimizer = "sgd"
learning_rate = 0.01
batch_size = 64
epochs = 1
seed = 42
"""


class Clock:
    """Runs programs in one folder and measures when they reach a point, in seconds after their start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def printed(self, program: str) -> float:
        """When `program`, Python source that prints the time once it is ready, was ready."""
        began = time()
        return float(self._run("-c", program)) - began

    def ended(self, *arguments: str) -> float:
        """When Python with `arguments` ended."""
        began = time()
        self._run(*arguments)
        return time() - began

    def wrote(self, pattern: str, *arguments: str) -> float:
        """When Python with `arguments` wrote the first file that matches `pattern`."""
        began = time()
        self._run(*arguments)
        return min(path.stat().st_mtime for path in self._folder.glob(pattern)) - began

    def _run(self, *arguments: str) -> str:
        command = [sys.executable, *arguments]
        made = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{made.stderr}")
        return made.stdout


def measure_round(clock: Clock, folder: Path) -> dict[str, float]:
    """Measures each once, one after the other."""
    for name in ("features", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return {
        "tensorflow": clock.printed(_TENSORFLOW),
        "spark": clock.printed(_SPARK),
        "run": clock.wrote("features/**/*.parquet", "-m", "featurize", "run", "recipe.toml"),
        "fit": clock.wrote("model/**/*.keras", "-m", "finetune", "fit", "recipe.toml"),
        "typer": clock.ended("-c", _TYPER, "--help"),
        "help": clock.ended("-m", "featurize", "--help"),
        "version": clock.ended("-m", "finetune", "--version"),
    }


def summarize(rounds: list[dict[str, float]]) -> dict[str, object]:
    """Medians in seconds; a ratio is the median over rounds of the ratio within a round, as the machine's speed varies."""

    def median_ratio(name: str, *beside: str) -> float:
        return round(statistics.median(seconds[name] / max(seconds[b] for b in beside) for seconds in rounds), 2)

    return {
        "rounds": len(rounds),
        "cores": len(os.sched_getaffinity(0)),
        "seconds": {name: round(statistics.median(seconds[name] for seconds in rounds), 2) for name in rounds[0]},
        "run_to_longer": median_ratio("run", "tensorflow", "spark"),
        "fit_to_tensorflow": median_ratio("fit", "tensorflow"),
        "help_to_typer": median_ratio("help", "typer"),
        "version_to_typer": median_ratio("version", "typer"),
    }


def main() -> None:
    """Parses the options, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()
    find_java()
    with tempfile.TemporaryDirectory(prefix="firn-") as name:
        folder = Path(name)
        draw_images(options.images, folder / "images")
        (folder / "recipe.toml").write_text(_RECIPE)
        root = str(Path(__file__).resolve().parent.parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        clock = Clock(folder)
        rounds = [measure_round(clock, folder) for _ in range(options.rounds)]
    sys.stdout.write(json.dumps(summarize(rounds)) + "\n")


if __name__ == "__main__":
    main()
