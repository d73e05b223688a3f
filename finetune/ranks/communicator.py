"""The other ranks, as far as training needs them: sums and minima over all of them. Horovod's are in `distributed`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Communicator(Protocol):
    """All ranks of a training. Every rank must enter each collective, in the same order, in a graph or outside."""

    rank: int
    size: int

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """The sums of `tensors`, which have one dtype, over all ranks, in one collective."""

    def minimum(self, tensors: Sequence[Any]) -> list[Any]:
        """The least value of each element of `tensors`, which have one dtype, over all ranks, in one collective."""

    def report(self, doing: str) -> None:
        """Says what this rank is doing, such as ``epoch 3, step 17``: told to the user when this rank is lost."""

    def tell(self, facts: Mapping[str, float]) -> None:
        """Hands something for the user to the process that has started the ranks on Spark."""


class SingleRank:
    """No other ranks."""

    rank = 0
    size = 1

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """`tensors` themselves."""
        return list(tensors)

    def minimum(self, tensors: Sequence[Any]) -> list[Any]:
        """`tensors` themselves."""
        return list(tensors)

    def report(self, doing: str) -> None:
        """Nobody to tell."""

    def tell(self, facts: Mapping[str, float]) -> None:
        """Nobody to tell."""
