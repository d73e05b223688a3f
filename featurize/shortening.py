"""Long lists in messages and tables: the first few, and how many more there are."""

from collections.abc import Iterable, Sequence

MOST_NAMED = 8


def and_more(left: int, things: str = "") -> str:
    """A line for what is not shown, as in ``... and 1,200 more settings``; empty where nothing is left."""
    return f"... and {left:,} more{f' {things}' if things else ''}" if left > 0 else ""


def name_some(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """The first `most` of `names`, separated by commas, and how many more there are: ``ant, bee and 3 more``."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def some_lines(lines: Iterable[str], most: int, *, indent: str = "  ", things: str = "") -> list[str]:
    """The first `most` of `lines`, and where there are more a line that says how many.

    Args:
        lines: The lines, with their indent.
        most: Number of lines to show.
        indent: Indent of the last line.
        things: What the lines are, for the last one, as in ``... and 3 more settings``.
    """
    every = list(lines)
    more = and_more(len(every) - most, things)
    return [*every[:most], *([f"{indent}{more}"] if more else [])]
