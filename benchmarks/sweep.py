"""Many settings at once beside the same settings one after another, in one warm process with the same threads.

    featurize run configs/objects_mobilenet.toml && python benchmarks/sweep.py --features runs/objects/features
    python benchmarks/sweep.py --features runs/objects/features --mnist runs/mnist/features [--alone 6] [--together 4 8 16 32]

Heads: 200 softmax heads, 8 learning rates x 5 penalties x 5 seeds, of 15 epochs each. With --mnist, the classic experiment
too: 140 networks 784-500-n-10 on the pixels, 4 sizes n x 7 seeds x 5 learning rates, of 2 epochs each.

Both ways build their graphs for every training and evaluate on the validation split after every epoch. One after another takes
long, and so is measured on a sample of --alone settings before the stacks and again after them, and scaled; largest_difference is
that of the weights of these from those of the stack. Writing the model folders is in neither. Prints one JSON object.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # beside this file lies another `featurize`
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from featurize.backbones import set_threads
from featurize.errors import FirnError
from featurize.manifests import read_features_manifest
from featurize.model_settings import ModelSettings
from featurize.training_settings import TrainingSettings
from finetune.fit import FitResult, fit
from finetune.loader import Data, MemoryData
from finetune.models import build_model
from finetune.split_data import read_split
from finetune.stacked import fit_stack
from finetune.stacks import Stacks
from finetune.trials import MOST_TOGETHER

HEAD_RATES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
PENALTIES = (0.0, 0.0005, 0.001, 0.005, 0.01)
SIZES = (50, 100, 150, 200)
MLP_RATES = (0.002, 0.005, 0.01, 0.02, 0.05)

Job = tuple[ModelSettings, TrainingSettings]


class Experiment:
    """Jobs on one feature set."""

    def __init__(self, url: str, groups: Sequence[Sequence[Job]]) -> None:
        manifest = read_features_manifest(url)
        self.groups = groups
        self.jobs = [job for group in groups for job in group]
        self.train, self.validation = (MemoryData(read_split(url, manifest, name)) for name in ("train", "validation"))
        self._shape = {
            "feature_shape": manifest.feature_shape,
            "feature_dtype": manifest.feature_dtype,
            "n_classes": len(manifest.classes),
        }

    def build(self, job: Job) -> Any:
        return build_model(job[0], seed=job[1].seed, **self._shape)

    def data(self) -> tuple[Data, Data]:
        return self.train, self.validation


def heads(url: str, epochs: int) -> Experiment:
    """Each group sees the same batches."""
    model = ModelSettings(name="softmax_head", url="nowhere")
    groups = [
        [
            (model, TrainingSettings(learning_rate=rate, l2=l2, seed=seed, epochs=epochs, schedule="cosine"))
            for rate, l2 in itertools.product(HEAD_RATES, PENALTIES)
        ]
        for seed in range(5)
    ]
    return Experiment(url, groups)


def networks(url: str, epochs: int) -> Experiment:
    groups = [
        [
            (
                ModelSettings(name="mlp_head", hidden=[500, size], url="nowhere"),
                TrainingSettings(learning_rate=rate, seed=seed, epochs=epochs, batch_size=64),
            )
            for rate in MLP_RATES
        ]
        for size, seed in itertools.product(SIZES, range(7))
    ]
    return Experiment(url, groups)


def run_alone(experiment: Experiment, jobs: Sequence[Job]) -> tuple[float, list[FitResult]]:
    """Seconds of one training, and what each gave."""
    started = perf_counter()
    results = [fit(experiment.build(job), *experiment.data(), job[1]) for job in jobs]
    return (perf_counter() - started) / len(jobs), results


def run_together(experiment: Experiment, most: int) -> tuple[float, list[FitResult | FirnError]]:
    """Seconds of all trainings in stacks of up to `most`."""
    started, results, stacks = perf_counter(), list[FitResult | FirnError](), Stacks()
    for group in experiment.groups:
        for first in range(0, len(group), most):
            part = group[first : first + most]
            models, settings = [experiment.build(job) for job in part], [job[1] for job in part]
            results += fit_stack(models, *experiment.data(), settings, stacks=stacks)
    return perf_counter() - started, results


def compare(experiment: Experiment, *, sizes: Sequence[int], n_alone: int) -> dict[str, Any]:
    jobs = experiment.jobs
    places = np.linspace(0, len(jobs) - 1, n_alone).astype(int).tolist()
    run_alone(experiment, jobs[:1])  # warm
    before, alone = run_alone(experiment, [jobs[place] for place in places])
    together, differences = {}, list[float]()
    for most in sizes:
        together[str(most)], results = run_together(experiment, most)
        for place, wanted in zip(places, alone, strict=True):
            found = results[place]
            if isinstance(found, FitResult):
                pairs = zip(found.last_weights, wanted.last_weights, strict=True)
                differences.append(max(float(np.abs(one - other).max()) for one, other in pairs))
        print(f"{len(jobs)} in stacks of {most}: {together[str(most)]:.1f} s", file=sys.stderr, flush=True)
    after, _ = run_alone(experiment, [jobs[place] for place in places])
    one_by_one = (before + after) / 2 * len(jobs)
    return {
        "models": len(jobs),
        "seconds_one_after_another": one_by_one,
        "seconds_of_one_before_and_after": [before, after],
        "seconds_together": together,
        "times_as_fast": {most: one_by_one / seconds for most, seconds in together.items()},
        "largest_difference": max(differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True, help="of a network, for the heads")
    parser.add_argument("--mnist", help="pixels of MNIST")
    parser.add_argument("--alone", type=int, default=6, help="settings that are trained alone, before and after")
    parser.add_argument("--together", type=int, nargs="+", default=[MOST_TOGETHER], help="sizes of stacks")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    set_threads(cores)
    results = {"cores": cores, "load_average_before": os.getloadavg()[0]}
    results["heads"] = compare(heads(options.features, 15), sizes=options.together, n_alone=options.alone)
    results["heads"]["goal_6_times"] = max(results["heads"]["times_as_fast"].values()) >= 6
    if options.mnist:
        found = compare(networks(options.mnist, 2), sizes=options.together, n_alone=options.alone)
        results["mnist_networks"] = found | {"goal_3_times": max(found["times_as_fast"].values()) >= 3}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
