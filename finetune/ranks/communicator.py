"""The other ranks, as far as training needs them: sums and minima over all of them. Horovod's are in `horovod_ranks`."""

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
        """Says what this rank is doing, such as ``epoch 3, step 17``; the user sees it if this rank is lost."""

    def tell(self, facts: Mapping[str, float]) -> None:
        """Sends numbers for the user to the process that has started the ranks on Spark."""


class SingleRank:
    """The communicator of a training on one rank."""

    rank = 0
    size = 1

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """`tensors` themselves."""
        return list(tensors)

    def minimum(self, tensors: Sequence[Any]) -> list[Any]:
        """`tensors` themselves."""
        return list(tensors)

    def report(self, doing: str) -> None:
        """Does nothing."""

    def tell(self, facts: Mapping[str, float]) -> None:
        """Does nothing."""
