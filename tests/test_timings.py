"""Timings: what is measured is added up, also where the work fails."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.timings import Timings, add_timings

NAMES = list(Timings.model_fields)
seconds = st.integers(0, 10**6).map(lambda value: value / 1024)  # sums of these are exact
timings = st.builds(Timings, **dict.fromkeys(NAMES, seconds))


@given(st.lists(timings, max_size=6))
def test_a_sum_is_the_sum_of_each_entry_in_any_order(parts: list[Timings]) -> None:
    total = add_timings(parts)
    assert total == add_timings(parts[::-1])
    assert total.model_dump() == {name: sum(getattr(part, name) for part in parts) for name in NAMES}


def test_adding_leaves_the_parts_as_they_were() -> None:
    part = Timings(read=1.0)
    add_timings([part, part])
    assert part == Timings(read=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_each_block_is_measured_once_and_under_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.5, 200.0, 200.25])
    monkeypatch.setattr("featurize.timings.perf_counter", lambda: next(clock))
    measured = Timings()
    with measured.measure(name):
        pass
    with pytest.raises(OSError), measured.measure(name):
        raise OSError
    assert measured == Timings(**{name: 1.75})


def test_time_that_two_threads_spend_at_once_counts_once_and_counts_while_they_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([10.0, 11.0, 13.0, 16.0, 20.0, 21.0])
    monkeypatch.setattr("featurize.timings.perf_counter", lambda: next(clock))
    measured = Timings()
    with measured.measure("forward"), measured.measure("forward"):
        assert measured.forward == 1.0
    assert measured.forward == 6.0
    with measured.measure("forward"):
        pass
    assert measured == Timings(forward=7.0)


def test_timings_are_rounded_for_people_and_come_back_from_json_as_they_were() -> None:
    measured = Timings(read=1.23456, tasks=2 / 3)
    assert measured.rounded() == {**dict.fromkeys(NAMES, 0.0), "read": 1.235, "tasks": 0.667}
    assert Timings.model_validate_json(measured.model_dump_json()) == measured
