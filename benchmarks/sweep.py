"""Time to train many settings together, beside the same settings one after another, in warm processes on the same cores.

    featurize run configs/objects_mobilenet.toml && python benchmarks/sweep.py --features runs/objects/features
    python benchmarks/sweep.py --features runs/objects/features --mnist runs/mnist/features [--alone 6] [--together 8 16 32]

Heads: 200 softmax heads, 8 learning rates x 5 penalties x 5 seeds, of 15 epochs each. With --mnist also the classic experiment:
networks 784-500-n-10 on the pixels, 4 sizes n x 7 seeds x 5 learning rates, of 2 epochs each; --mnist-seeds trains fewer of the
7 seeds and scales the time.

One after another, each `fit` has all cores. Together, stacks are trained as in `finetune sweep`: as many at a time as there are
cores, each in a thread. Both build their graphs (stacks reuse them for the next stack of the same shape) and evaluate on the
validation split after every epoch. As one after another takes long, it is measured on a sample of --alone settings, before the
stacks and again after them, and scaled. `differences` has, by learning rate, the largest difference between the last weights of
this sample and those from the stack; if the learning rate is so high that training is unstable, `fit` on one thread and on two
differ as much. No time includes writing model folders. Prints one JSON object.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from featurize.backbones.keras_network import set_threads
from featurize.errors import FirnError
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.training_section import TrainingSettings
from featurize.tables.readable import read_features_manifest
from finetune.networks.build import build_model
from finetune.rows.loader import Data, MemoryData
from finetune.rows.splits import read_split
from finetune.sweeps.stacked_fit import fit_stack
from finetune.sweeps.stacks import Stacks
from finetune.sweeps.trials import MOST_TOGETHER
from finetune.training.loop import FitResult, fit

HEAD_RATES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
PENALTIES = (0.0, 0.0005, 0.001, 0.005, 0.01)
SIZES = (50, 100, 150, 200)
CORES = len(os.sched_getaffinity(0))
MLP_RATES = (0.002, 0.005, 0.01, 0.02, 0.05)

Job = tuple[ModelSettings, TrainingSettings]


class Experiment:
    """Trainings on one feature set."""

    def __init__(self, url: str, groups: Sequence[Sequence[Job]]) -> None:
        manifest = read_features_manifest(url)
        self.groups = groups
        self.jobs = [job for group in groups for job in group]
        self.train, self.validation = (MemoryData(read_split(url, manifest, name)) for name in ("train", "validation"))
        self._shape: dict[str, Any] = {
            "feature_shape": manifest.feature_shape,
            "feature_dtype": manifest.feature_dtype,
            "n_classes": len(manifest.classes),
        }

    def build(self, job: Job) -> Any:
        return build_model(job[0], seed=job[1].seed, **self._shape)

    def data(self) -> tuple[Data, Data]:
        return self.train, self.validation


def heads(url: str, epochs: int) -> Experiment:
    """The softmax heads; those of a group train on the same batches."""
    model = ModelSettings(name="softmax_head", url="nowhere")
    groups = [
        [
            (model, TrainingSettings(learning_rate=rate, l2=l2, seed=seed, epochs=epochs, schedule="cosine"))
            for rate, l2 in itertools.product(HEAD_RATES, PENALTIES)
        ]
        for seed in range(5)
    ]
    return Experiment(url, groups)


def networks(url: str, epochs: int, seeds: int) -> Experiment:
    groups = [
        [
            (
                ModelSettings(name="mlp_head", hidden=[500, size], url="nowhere"),
                TrainingSettings(learning_rate=rate, seed=seed, epochs=epochs, batch_size=64),
            )
            for rate in MLP_RATES
        ]
        for size, seed in itertools.product(SIZES, range(seeds))
    ]
    return Experiment(url, groups)


def run_alone(experiment: Experiment, places: Sequence[int]) -> tuple[float, list[list[Any]]]:
    """Mean seconds of a training, and the last weights of each."""
    jobs = [experiment.jobs[place] for place in places]
    fit(experiment.build(jobs[0]), *experiment.data(), jobs[0][1])  # warm
    started = perf_counter()
    results = [fit(experiment.build(job), *experiment.data(), job[1]) for job in jobs]
    return (perf_counter() - started) / len(jobs), [result.last_weights for result in results]


def run_together(experiment: Experiment, places: Sequence[int], most: int) -> tuple[float, list[list[Any]]]:
    """Seconds of all trainings in stacks of up to `most`, and the last weights of those at `places`."""
    own, building = threading.local(), threading.Lock()

    def train(part: Sequence[Job]) -> list[FitResult | FirnError]:
        if not hasattr(own, "stacks"):
            own.stacks = Stacks()
        with building:
            models = [experiment.build(job) for job in part]
        return fit_stack(models, *experiment.data(), [job[1] for job in part], stacks=own.stacks)

    parts = [group[first : first + most] for group in experiment.groups for first in range(0, len(group), most)]
    train(
        [(job[0], job[1].model_copy(update={"epochs": 1})) for job in parts[0]]
    )  # to warm up; other numbers of epochs have other graphs
    own = threading.local()
    started = perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        results = [result for done in threads.map(train, parts) for result in done]
    seconds = perf_counter() - started
    return seconds, [result.last_weights for place in places if isinstance(result := results[place], FitResult)]


def in_own_process(work: Callable[..., Any], *arguments: Any, threads: int) -> Any:
    """Runs `work` in a process whose operations have `threads` threads, and returns its result."""
    context = multiprocessing.get_context("spawn")
    at_once = CORES // threads
    with ProcessPoolExecutor(1, mp_context=context, initializer=partial(set_threads, threads, at_once=at_once)) as pool:
        return pool.submit(_with_experiment, work, *arguments).result()


def _with_experiment(work: Callable[..., Any], make: Callable[[], Experiment], *arguments: Any) -> Any:
    return work(make(), *arguments)


def compare(make: Callable[[], Experiment], *, sizes: Sequence[int], n_alone: int, scale: float) -> dict[str, Any]:
    jobs = make().jobs
    n_jobs = len(jobs)
    places = (np.linspace(0, n_jobs, n_alone, endpoint=False) + n_jobs / n_alone / 2).astype(int).tolist()
    before, alone = in_own_process(run_alone, make, places, threads=CORES)
    together, differences = {}, dict[str, list[float]]()
    for most in sizes:
        seconds, found = in_own_process(run_together, make, places, most, threads=1)
        together[str(most)] = seconds * scale
        for place, weights, wanted in zip(places, found, alone, strict=True):
            largest = max(float(np.abs(one - other).max()) for one, other in zip(weights, wanted, strict=True))
            differences.setdefault(f"learning_rate {jobs[place][1].learning_rate}", []).append(largest)
        print(f"{n_jobs} in stacks of {most}: {seconds:.1f} s; one alone {before:.2f} s", file=sys.stderr, flush=True)
    after, _ = in_own_process(run_alone, make, places, threads=CORES)
    one_by_one = (before + after) / 2 * n_jobs * scale
    return {
        "models": round(n_jobs * scale),
        "seconds_one_after_another": one_by_one,
        "seconds_of_one_before_and_after": [before, after],
        "seconds_together": together,
        "times_as_fast": {most: one_by_one / seconds for most, seconds in together.items()},
        "differences": differences,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True, help="URL of features of a network, for the heads")
    parser.add_argument("--mnist", help="URL of a feature set of MNIST's pixels")
    parser.add_argument("--mnist-seeds", type=int, default=7, help="number of the 7 seeds to train")
    parser.add_argument("--alone", type=int, default=6, help="number of settings trained alone, before and after")
    parser.add_argument("--together", type=int, nargs="+", default=[MOST_TOGETHER], help="sizes of stacks")
    options = parser.parse_args()
    results: dict[str, Any] = {"cores": CORES, "load_average_before": os.getloadavg()[0]}
    found = compare(partial(heads, options.features, 15), sizes=options.together, n_alone=options.alone, scale=1)
    results["heads"] = found | {"goal_6_times": max(found["times_as_fast"].values()) >= 6}
    if options.mnist:
        seeds = options.mnist_seeds
        make = partial(networks, options.mnist, 2, seeds)
        found = compare(make, sizes=options.together[:1], n_alone=options.alone, scale=7 / seeds)
        results["mnist_networks"] = found | {"goal_3_times": max(found["times_as_fast"].values()) >= 3}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
