"""Splits: a hash of the image decides, so they are stable, and equal bytes are in one split."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.recipes.recipe import FractionSplit
from featurize.sources.splits import SplitRule, hash_to_unit, split_by_fractions

IDS = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(20_000)]
image_ids = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def fractions(draw: st.DrawFn) -> FractionSplit:
    parts = draw(st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20)))
    train, validation, test = (part / sum(parts) for part in parts)
    return FractionSplit(train=train, validation=validation, test=test, seed=draw(st.integers(0, 2**31)))


@given(image_ids, st.integers())
def test_the_hash_is_in_the_unit_interval_and_never_one(image_id: str, seed: int) -> None:
    assert 0 <= hash_to_unit(image_id, seed) < 1
    assert hash_to_unit(image_id, seed) == hash_to_unit(image_id, seed)


def test_the_hash_is_what_it_was_when_the_first_tables_were_written() -> None:
    """Every table written so far hangs on it: a new formula needs a new schema version."""
    expected = int(hashlib.sha256(b"7:abc").hexdigest()[:16], 16) / 2**64
    assert hash_to_unit("abc", 7) == pytest.approx(expected, abs=2**-52)


@given(image_ids, fractions())
def test_an_image_is_only_in_splits_that_have_a_fraction(image_id: str, split: FractionSplit) -> None:
    assert getattr(split, split_by_fractions(image_id, split)) > 0


@pytest.mark.parametrize(
    "split",
    [
        FractionSplit(),
        FractionSplit(train=0.8, validation=0.1, test=0.1, seed=1),
        FractionSplit(train=0.7, validation=0.3, test=0.0),
        FractionSplit(train=0.7, validation=0.0, test=0.3),
        FractionSplit(train=1.0, validation=0.0, test=0.0),
    ],
)
def test_fractions_are_met_within_five_standard_deviations(split: FractionSplit) -> None:
    counts = Counter(split_by_fractions(image_id, split) for image_id in IDS)
    for name in ("train", "validation", "test"):
        expected = getattr(split, name)
        deviation = (expected * (1 - expected) / len(IDS)) ** 0.5
        assert abs(counts[name] / len(IDS) - expected) <= 5 * deviation


def test_no_image_falls_into_a_test_split_of_fraction_zero() -> None:
    # 0.7 + 0.2 + 0.1 in floating point is below 1: a sliver of rounding must not become a test split.
    split = FractionSplit(train=0.9, validation=0.1, test=0.0)
    assert "test" not in {split_by_fractions(image_id, split) for image_id in IDS}


def test_other_seeds_divide_otherwise() -> None:
    one, other = (FractionSplit(train=0.5, validation=0.25, test=0.25, seed=seed) for seed in (1, 2))
    agreeing = sum(split_by_fractions(i, one) == split_by_fractions(i, other) for i in IDS) / len(IDS)
    assert agreeing == pytest.approx(0.5**2 + 0.25**2 + 0.25**2, abs=0.03)  # independent draws


def test_a_growing_train_fraction_only_gains_images() -> None:
    small, large = (FractionSplit(train=t, validation=0.2, test=0.8 - t) for t in (0.3, 0.6))
    before = {i for i in IDS if split_by_fractions(i, small) == "train"}
    after = {i for i in IDS if split_by_fractions(i, large) == "train"}
    assert before < after


@given(image_ids, st.sampled_from(["train", "validation", "test"]), st.floats(0, 0.9))
def test_only_train_gives_images_to_the_validation_set_aside(image_id: str, own: str, fraction: float) -> None:
    assigned = SplitRule(fractions=None, validation_fraction=fraction).assign(image_id, own)
    assert assigned == own or (own == "train" and assigned == "validation")


def test_a_tenth_of_train_is_set_aside() -> None:
    rule = SplitRule(fractions=None, validation_fraction=0.1)
    aside = sum(rule.assign(image_id, "train") == "validation" for image_id in IDS)
    assert aside / len(IDS) == pytest.approx(0.1, abs=0.011)


def test_with_a_fraction_of_zero_nothing_is_set_aside() -> None:
    rule = SplitRule(fractions=None, validation_fraction=0.0)
    assert {rule.assign(image_id, "train") for image_id in IDS[:2000]} == {"train"}


@given(image_ids, fractions(), st.sampled_from([None, "train", "validation", "test"]))
def test_fractions_overrule_the_sources_own_split(image_id: str, split: FractionSplit, own: str | None) -> None:
    assert SplitRule(fractions=split).assign(image_id, own) == split_by_fractions(image_id, split)


def test_an_image_without_any_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="fractions"):
        SplitRule(fractions=None).assign(IDS[0], None)
