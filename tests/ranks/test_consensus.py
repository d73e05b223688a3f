"""Tests of finetune.ranks.consensus: ranks start from the same weights, and those that hold others are reported."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from helpers.models.heads import make_head

from featurize.errors import JobError
from finetune.ranks.communicator import SingleRank
from finetune.ranks.consensus import check_agreement, share_variables


class TwoRanks(SingleRank):
    """As rank 0 of two sees it, where rank 1 sends what `other` makes of rank 0's tensor."""

    rank, size = 0, 2

    def __init__(self, other: Callable[[Any], Any]) -> None:
        self._other = other

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        return [tensor + self._other(tensor) for tensor in tensors]


def test_ranks_that_hold_the_same_weights_agree() -> None:
    check_agreement(make_head(), SingleRank())
    check_agreement(make_head(), TwoRanks(lambda tensor: tensor))


@pytest.mark.parametrize("factor", [1.01, 0.0, -1.0, math.nan])
def test_ranks_that_hold_other_weights_are_reported(factor: float) -> None:
    with pytest.raises(JobError, match="ranks hold different weights"):
        check_agreement(make_head(), TwoRanks(lambda tensor: tensor * factor if tensor.shape.rank else tensor))


def test_rank_0_gives_its_weights_to_all() -> None:
    theirs = make_head(seed=1).get_weights()

    class SecondRank(SingleRank):
        """As rank 1 sees it: what rank 0 sends, in the order of the variables, is added to what it sends itself."""

        rank, size = 1, 2

        def __init__(self) -> None:
            self._sent = iter(theirs)

        def sum(self, tensors: Sequence[Any]) -> list[Any]:
            return [tensor + next(self._sent) for tensor in tensors]

    model = make_head(seed=2)
    share_variables(model.weights, SecondRank())
    for found, wanted in zip(model.get_weights(), theirs, strict=True):
        np.testing.assert_array_equal(found, wanted)
