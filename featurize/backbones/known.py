"""The backbones that recipes can name: their input, features, size and amount of work, from a table, so that none is built.

`scripts/list_backbones.py` builds every network and writes the table, `known.json`. TensorFlow is imported only to build one.
"""

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from featurize.engines.keras_layers import count_layer, has_kernel
from featurize.errors import UsageError

if TYPE_CHECKING:
    import keras

TABLE = "known.json"
"""The file of the table, in this package."""


@dataclass(frozen=True)
class KnownBackbone:
    """A backbone that a recipe can name.

    Attributes:
        name: as in `backbone.name`.
        height: of its input in pixels, where the recipe does not say another; None for `pixels`, which takes any.
        width: of its input in pixels.
        layer: its usual layer, the last before the classifier, as in `backbone.layer`; None for `pixels`.
        features: numbers for an image at this layer; None for `pixels`, as its features are those of the size.
        parameters: weights up to this layer.
        multiply_adds: multiplications, each with its addition, for one image up to this layer.
        preparation: of RGB in [0, 255], which Firn does itself: "none", "caffe", "tf" or "torch".
        whole_parameters: weights of the network with its classifier.
        whole_multiply_adds: for one image, with the classifier; most papers state this number.
    """

    name: str
    height: int | None
    width: int | None
    layer: str | None
    features: int | None
    parameters: int
    multiply_adds: int
    preparation: str
    whole_parameters: int
    whole_multiply_adds: int

    @property
    def flops(self) -> int:
        """Floating-point operations for one image up to the usual layer: two for a multiplication with its addition."""
        return 2 * self.multiply_adds

    @property
    def is_pixels(self) -> bool:
        """Whether it is no network, and its features are the pixels themselves."""
        return self.name == PIXELS.name

    def as_dict(self) -> dict[str, Any]:
        """The backbone as a JSON-ready dict, with `flops`."""
        return {**asdict(self), "flops": self.flops}


PIXELS = KnownBackbone("pixels", None, None, None, None, 0, 0, "none", 0, 0)
"""The backbone that only resizes images."""


@cache
def known_networks() -> tuple[KnownBackbone, ...]:
    """EfficientNetLite0 and every network of keras.applications, by name."""
    text = files("featurize.backbones").joinpath(TABLE).read_text(encoding="utf-8")  # a package may be in a zip
    return tuple(KnownBackbone(**entry) for entry in json.loads(text))


def find_backbones(patterns: Sequence[str] = ()) -> tuple[KnownBackbone, ...]:
    """The backbones with these names, each once and in the order of the table; without names all of them.

    Args:
        patterns: names in upper or lower case; ``*`` stands for any letters, as in ``ResNet*``.

    Raises:
        UsageError: No backbone has such a name. The message says which are close to it.
    """
    known = (*known_networks(), PIXELS)
    if not patterns:
        return known
    chosen: set[KnownBackbone] = set()
    for pattern in patterns:
        found = [one for one in known if fnmatchcase(one.name.lower(), pattern.lower())]
        if not found:
            raise UsageError(_unknown(pattern, [one.name for one in known]))
        chosen.update(found)
    return tuple(one for one in known if one in chosen)


def _unknown(name: str, known: Sequence[str]) -> str:
    by_lower = {one.lower(): one for one in known}
    close = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known are {', '.join(known)}."
    return f"no backbone is called {name!r}. {hint}"


def examine_network(name: str) -> KnownBackbone:
    """Builds a network, without trained weights, and finds what the table says of it.

    Keras's names for layers without one are counted from zero again, so networks that were built before must not be cut after.

    Args:
        name: EfficientNetLite0, or a network of keras.applications.
    """
    import keras

    from featurize.backbones import efficientnet_lite, keras_network
    from featurize.recipes.backbone_section import BackboneSettings

    module = keras_network.application_names().get(name)
    make = efficientnet_lite.make_efficientnet_lite0 if module is None else getattr(keras.applications, name)

    def build(**options: Any) -> "keras.Model":
        keras.utils.clear_session()
        return make(weights=None, **options)

    network = build()
    height, width = keras_network.input_size(network, BackboneSettings(name=name))
    if None in network.inputs[0].shape[1:3]:  # it takes any size, so its layers have no shapes yet
        network = build(input_shape=(height, width, 3))
    layer = usual_layer(network)
    cut = keras_network.cut_network(network, BackboneSettings(name=name, layer=layer))
    return KnownBackbone(
        name=name,
        height=height,
        width=width,
        layer=layer,
        features=math.prod(cut.output.shape[1:]),
        parameters=cut.count_params(),
        multiply_adds=count_multiply_adds(cut),
        preparation="none" if module is None else keras_network.PREPROCESSING_OF_MODULE[module],
        whole_parameters=network.count_params(),
        whole_multiply_adds=count_multiply_adds(network),
    )


def usual_layer(network: "keras.Model") -> str:
    """The layer whose output the classifier takes: the classifier is the last layer with weights; dropout is passed over."""
    classifier = next(layer for layer in reversed(network.layers) if layer.weights)
    before = classifier.input._keras_history.operation
    while type(before).__name__ == "Dropout":
        before = before.input._keras_history.operation
    return str(before.name)


def count_multiply_adds(network: "keras.Model") -> int:
    """Multiplications, each with its addition, of one image's forward pass, from the shapes of the layers.

    Counted is as in `engines.keras_layers`: convolutions and dense layers.

    Args:
        network: built for images of one size; networks within it are counted too.

    Raises:
        ValueError: A layer has a weight with two or more dimensions and is none of these, or an output of no known size.
    """
    total = 0
    for layer in network._flatten_layers(include_self=False):
        if getattr(layer, "layers", None):  # of a network its layers are counted
            continue
        output = getattr(layer, "output", None)
        shape = () if output is None else output.shape
        count = count_layer(layer, shape)
        if count is None and has_kernel(layer):
            raise ValueError(f"{layer.name}: its output has no known size: {shape}.")
        if count is None:
            raise ValueError(
                f"{layer.name}: it is not known how much a layer of the kind {type(layer).__name__} computes."
            )
        total += count
    return total
