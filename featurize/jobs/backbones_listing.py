"""What the layers of a backbone are and cost, and how fast each engine computes a known one here; without Spark and images."""

import os
import tempfile
from dataclasses import dataclass
from typing import Any

from featurize.backbones import efficientnet_lite, keras_network, onnx_backbone
from featurize.backbones.backbone import open_backbone
from featurize.backbones.known import KnownBackbone, find_backbones
from featurize.backbones.measure import list_candidates, measure_engines
from featurize.engines.engine import NAMES, precisions_of
from featurize.engines.keras_layers import list_keras_layers
from featurize.engines.measurement import Measurement
from featurize.engines.parts import NetworkLayer
from featurize.errors import UsageError
from featurize.foreign_text import without_secrets
from featurize.progress import stage
from featurize.recipes.backbone_section import BackboneSettings, not_read
from featurize.recipes.toml_settings import check_settings
from featurize.shortening import name_some


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


@dataclass(frozen=True)
class LayersOfBackbone:
    """Where a backbone can be cut, and what its layers cost.

    Attributes:
        name: as in `backbone.name`.
        height: of its input in pixels.
        width: of its input in pixels.
        layers: its layers in the order of its graph. Those that cannot be cut are among them if they have weights or operations.
        usual_layer: for a known network, the last layer before its classifier.
    """

    name: str
    height: int
    width: int
    layers: tuple[NetworkLayer, ...]
    usual_layer: str | None = None

    @property
    def parameters(self) -> int:
        """Weights of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def known_multiply_adds(self) -> int:
        """Multiplications, each with its addition, for one image, of the layers of which it is known."""
        return sum(layer.multiply_adds or 0 for layer in self.layers)

    @property
    def multiply_adds(self) -> int | None:
        """Multiplications, each with its addition, for one image; None: of some layers it is not known."""
        return None if any(layer.multiply_adds is None for layer in self.layers) else self.known_multiply_adds

    def share_of(self, layer: NetworkLayer) -> float | None:
        """The share of all operations that a layer has, in percent; None: not known."""
        total = self.multiply_adds
        return 100 * (layer.multiply_adds or 0) / total if total else None

    def as_dict(self) -> dict[str, Any]:
        """All of it as a JSON-ready dict, with `flops`, two for a multiplication with its addition; null is what is not known."""
        total = self.multiply_adds
        return {
            "name": self.name,
            "height": self.height,
            "width": self.width,
            "default_layer": next((layer.name for layer in self.layers if layer.is_default), None),
            "usual_layer": self.usual_layer,
            "parameters": self.parameters,
            "multiply_adds": total,
            "known_multiply_adds": self.known_multiply_adds,
            "flops": None if total is None else 2 * total,
            "layers": [{**layer.as_dict(), "share_percent": self.share_of(layer)} for layer in self.layers],
        }


def list_layers(name: str, *, height: int | None = None, width: int | None = None) -> LayersOfBackbone:
    """Lists the layers of a network; one with a name is built without trained weights, so that nothing is downloaded.

    Args:
        name: a known backbone, in upper or lower case; or the path of a .keras or .onnx file, or of a folder.
        height: of its input in pixels, for networks that take images of any size.
        width: of its input in pixels.

    Raises:
        UsageError: There is no such network, it cannot be read, or the size is required or is not that of the network.
    """
    unread = not_read(name)
    if unread is not None:
        raise UsageError(f"`backbone.name`: {unread}.")
    document: dict[str, Any] = {"name": name, "height": height, "width": width}
    known = None
    if name.endswith((".keras", ".onnx")):
        document["preprocessing"] = "none"  # which changes no layer
    elif "/" not in name:
        known = _one_known(name)
        document |= {"name": known.name, "weights": "random"}
    settings = check_settings(BackboneSettings, document, origin=name)
    stage(f"reading {name}")
    if onnx_backbone.is_onnx_network(settings):
        layers, size = onnx_backbone.list_layers(settings)
    else:
        network = keras_network.build_network(settings)[0]
        keras_network.check_input(network, settings)
        size = keras_network.input_size(network, settings)
        layers = list_keras_layers(network, settings, height=size[0], width=size[1])
    stage("")
    usual = known.layer if known is not None else None
    return LayersOfBackbone(without_secrets(settings.name), *size, layers, usual)


def _one_known(name: str) -> KnownBackbone:
    found = find_backbones([name])
    if len(found) > 1:
        raise UsageError(f"`name` must be one backbone. {name!r} stands for {name_some([one.name for one in found])}.")
    if found[0].is_pixels:
        raise UsageError(f"{found[0].name} is no network: it has no layers.")
    return found[0]
