"""How fast each engine computes a known backbone on this machine, without Spark and without images."""

import os
import tempfile
from dataclasses import dataclass
from typing import Any

from featurize.backbones import efficientnet_lite
from featurize.backbones.backbone import open_backbone
from featurize.backbones.known import KnownBackbone
from featurize.backbones.measure import list_candidates, measure_engines
from featurize.engines.engine import NAMES, precisions_of
from featurize.engines.measurement import Measurement
from featurize.errors import UsageError
from featurize.progress import stage
from featurize.recipes.backbone_section import BackboneSettings


@dataclass(frozen=True)
class MeasuredBackbone:
    """What was measured of a backbone, up to its usual layer.

    Attributes:
        name: of the backbone.
        layer: its usual layer.
        weights: those it was measured with; speed does not depend on them, but how well bfloat16 keeps features does.
        threads: the cores that computed, in one process.
        measured: each engine in each of its precisions: the best first, those that cannot be used last.
    """

    name: str
    layer: str | None
    weights: str | None
    threads: int
    measured: tuple[Measurement, ...]

    @property
    def best(self) -> Measurement | None:
        """The fastest whose features are those of the reference; None if there is none."""
        first = self.measured[0] if self.measured else None
        return first if first is not None and first.is_faithful else None

    @property
    def has_random_weights(self) -> bool:
        """Whether the weights were not trained, so that the cosines may be others in use."""
        return (self.weights or "").startswith("random")

    def as_dict(self) -> dict[str, Any]:
        """What was measured as a JSON-ready dict; `is_best` marks the best."""
        return {
            "name": self.name,
            "layer": self.layer,
            "weights": self.weights,
            "threads": self.threads,
            "measured": [{**one.as_dict(), "is_best": one is self.best} for one in self.measured],
        }


def measure_backbone(known: KnownBackbone, *, threads: int | None = None) -> MeasuredBackbone:
    """Measures one backbone with each installed engine in each precision of this processor, each in a process of its own.

    Networks of keras.applications have random weights, so that nothing is downloaded; EfficientNetLite0 has ImageNet's where
    their package is installed. Once exported, a network is kept for the next time (`featurize.backbones.kept`).

    Args:
        known: the backbone.
        threads: number of cores; None: all that this process may use.

    Raises:
        UsageError: It is `pixels`, which nothing computes.
    """
    if known.is_pixels:
        raise UsageError(f"{known.name} is no network: there is nothing to measure.")
    threads = threads or len(os.sched_getaffinity(0))
    weights = "imagenet_or_random" if known.name == efficientnet_lite.NAME else "random"
    settings = BackboneSettings(name=known.name, layer=known.layer, weights=weights)
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        stage(f"building {known.name}")
        opened = open_backbone(settings, folder)
        candidates, files = list_candidates(opened, precisions_of)
        stage(f"measuring {', '.join(NAMES[engine] for engine in opened.engines())} for {known.name}")
        measured = measure_engines(opened.spec, candidates, files, threads=threads)
        stage("")
        return MeasuredBackbone(known.name, opened.spec.layer, opened.spec.weights, threads, measured)
