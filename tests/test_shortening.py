"""Long lists are cut to the first few, and how many are left is said only where some are."""

import pytest

from featurize.shortening import and_more, name_some, some_lines

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.mark.parametrize(
    ("most", "text"),
    [(1, "ant and 3 more"), (3, "ant, bee, cat and 1 more"), (4, "ant, bee, cat, dog"), (9, "ant, bee, cat, dog")],
)
def test_names(most: int, text: str) -> None:
    assert name_some(NAMES, most) == text


def test_eight_names_are_shown_where_nobody_says_how_many() -> None:
    assert name_some([str(number) for number in range(1009)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 1,001 more"


def test_lines() -> None:
    assert some_lines(NAMES, 4) == NAMES
    assert some_lines(iter(NAMES), 2) == ["ant", "bee", "  ... and 2 more"]
    assert some_lines(NAMES, 1, indent="", things="settings") == ["ant", "... and 3 more settings"]
    assert some_lines([], 3) == []


def test_nothing_left_is_not_said() -> None:
    assert [and_more(left, "rows") for left in (1200, 1, 0, -3)] == [
        "... and 1,200 more rows",
        "... and 1 more rows",
        "",
        "",
    ]
