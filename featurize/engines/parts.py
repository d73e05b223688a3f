"""What of a network the features are: the text of `backbone.layer`, and the Keras layers and ONNX tensors that it may name."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

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


@dataclass(frozen=True)
class NetworkLayer:
    """A place of a network that `backbone.layer` may name: the output of a layer, or a tensor of an ONNX network.

    Attributes:
        name: as in `backbone.layer` where it can be cut; otherwise as the network calls it.
        kind: the class of the layer, or the operator of the node in ONNX.
        shape: of the output for one image, without the batch axis; None in place of a length, or of all, that is not known.
        parameters: weights of the layer; those that another layer before it has too are not counted again.
        multiply_adds: multiplications, each with its addition, for one image; None: it is not known how much it computes.
        can_be_cut: whether `backbone.layer` may name it.
        needs_pooling: whether its name needs `:cls` or `:mean`, as that of tokens in ONNX does.
        is_default: whether it is the network's own output, which is taken where no layer is named.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...] | None
    parameters: int
    multiply_adds: int | None
    can_be_cut: bool = True
    needs_pooling: bool = False
    is_default: bool = False

    @property
    def features(self) -> int | None:
        """Numbers for one image, with `:cls` or `:mean` where the name needs it; None: not known."""
        if self.shape is None or not self.can_be_cut:
            return None
        lengths = self.shape[-1:] if self.needs_pooling else self.shape
        known = [length for length in lengths if length is not None]
        return math.prod(known) if len(known) == len(lengths) else None

    @property
    def is_worth_a_row(self) -> bool:
        """Whether it can be cut, or has weights or operations that totals must have."""
        return self.can_be_cut or self.parameters > 0 or self.multiply_adds != 0

    def as_dict(self) -> dict[str, Any]:
        """The place as a JSON-ready dict, with `features` and `flops`."""
        flops = None if self.multiply_adds is None else 2 * self.multiply_adds
        fields = asdict(self)
        return {
            **{("type" if key == "kind" else key): value for key, value in fields.items()},
            "features": self.features,
            "flops": flops,
        }


def is_one_name(text: str) -> bool:
    """Whether `backbone.layer` takes a text as the name of one layer, and not as parts or with a pooling."""
    return parse_layer(text) == (Part(text),) if text.strip() else False


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
