"""Tests of featurize.tables.description: what is said of classes with few rows, or none."""

from featurize.tables.description import notes_on_rows

CLASSES = ["ant", "bee", "cat"]


def test_classes_with_few_rows_or_none_are_named_for_each_split() -> None:
    rows = {"train": {"ant": 9, "bee": 5, "cat": 1}, "validation": {"ant": 7, "cat": 6}, "test": {"ant": 4}}
    assert notes_on_rows(rows, CLASSES) == [
        "the split train has fewer than 5 of cat (1).",
        "the split validation has no rows of bee.",
        "the split test has no rows of bee, cat, and fewer than 5 of ant (4).",
    ]


def test_a_split_that_is_not_there_and_one_with_enough_are_passed_over() -> None:
    assert notes_on_rows({"train": dict.fromkeys(CLASSES, 5), "validation": {}, "test": {"ant": 0}}, CLASSES) == []


def test_of_many_classes_some_are_named() -> None:
    classes = [f"c{number:03d}" for number in range(100)]
    (note,) = notes_on_rows({"train": {"c000": 50}}, classes)
    assert note.startswith("the split train has no rows of c001, ")
    assert note.endswith(" and 91 more.")
