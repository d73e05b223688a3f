"""What of a network the features are: the text of `backbone.layer`, for Keras layers and ONNX tensors alike."""

import math
from dataclasses import dataclass
from typing import Literal

from featurize.errors import UsageError

Pooling = Literal["cls", "mean"]
_POOLINGS: tuple[Pooling, ...] = ("cls", "mean")


@dataclass(frozen=True)
class Part:
    """A layer or tensor, and what is taken of its output.

    Attributes:
        name: name of the layer or tensor; None: the network's output.
        pooling: "cls": the first token of a transformer; "mean": the mean over its patches, or over the positions of a feature
            map; None: all of it.
    """

    name: str | None
    pooling: Pooling | None = None

    def __str__(self) -> str:
        return (self.name or "") + (f":{self.pooling}" if self.pooling else "")


def parse_layer(layer: str | None) -> tuple[Part, ...]:
    """The parts that `backbone.layer` names: ``NAME``, ``NAME:cls`` or ``NAME:mean``, joined by " + " into one row of features.

    Raises:
        UsageError: A part is empty.
    """
    if layer is None:
        return (Part(None),)
    parts = []
    for text in layer.split(" + "):
        name, found, suffix = text.strip().rpartition(":")
        pooling = next((pooling for pooling in _POOLINGS if found and pooling == suffix), None)
        name = name if pooling else text.strip()
        if not name and pooling is None:
            raise UsageError(f"`backbone.layer`: a part of {layer!r} is empty.")
        parts.append(Part(name or None, pooling))
    return tuple(parts)


def count_prefix_tokens(tokens: int, *, height: int, width: int, patch_size: int | None, name: str) -> int:
    """How many tokens of a transformer come before its patches: the class token, registers.

    Args:
        tokens: number of all tokens.
        height: of the network's input, in pixels.
        width: of the network's input, in pixels.
        patch_size: pixels of a patch's side, if the network's configuration says it. Otherwise the patches of a square input are
            the largest square number of tokens, as fewer than that come before them.
        name: the layer, for messages.

    Raises:
        UsageError: the patches cannot be told from other tokens.
    """
    if patch_size is not None:
        patches = (height // patch_size) * (width // patch_size)
    elif height == width:
        patches = math.isqrt(tokens) ** 2
    else:
        raise UsageError(
            f"`backbone.layer`: which of the {tokens} tokens of {name} are patches is not known. Use `:cls`."
        )
    if not 0 < patches <= tokens:
        raise UsageError(f"`backbone.layer`: {name} has {tokens} tokens, but {patches} patches were expected.")
    return tokens - patches
