"""Tables that people write in CSV: encoding and separator are those of the file, and text stays text."""

import csv
import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from featurize.errors import UsageError
from featurize.foreign_text import read_cell
from featurize.shortening import name_some

_logger = logging.getLogger(__name__)
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class CsvTable:
    """The cells of a CSV file as they are written.

    Attributes:
        origin: The file, for messages.
        header: The names of the columns.
        rows: The rows, each with a cell for each column, and its line in the file.
    """

    origin: str
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def check_columns(self, names: Sequence[str]) -> None:
        """Checks that columns are there.

        Raises:
            UsageError: One is not; the message names those that are there.
        """
        if missing := [name for name in names if name not in self.header]:
            there = name_some([repr(name) for name in self.header])
            raise UsageError(f"{self.origin} has no column {missing[0]}. Its columns are {there}.")

    def column(self, name: str) -> list[str]:
        """The cells of a column."""
        place = self.header.index(name)
        return [cells[place] for _, cells in self.rows]

    def as_arrow(self, *, text: Sequence[str] = ()) -> pa.Table:
        """The rows as a table: an empty cell is null, and a column is of numbers only if each of its cells is written as one.

        `01`, `+1`, `null` and `true` are text, and so is the whole column.

        Args:
            text: Columns that are text whatever their cells are.
        """
        columns = {}
        for place, name in enumerate(self.header):
            cells = [cells[place] or None for _, cells in self.rows]
            columns[name] = pa.array([None if cell is None else read_cell(cell) for cell in cells], pa.string())
            written = [cell for cell in cells if cell is not None]
            if name not in text and written and all(_NUMBER.fullmatch(cell) for cell in written):
                is_whole = all(_WHOLE.fullmatch(cell) for cell in written)
                columns[name] = columns[name].cast(pa.int64() if is_whole else pa.float64())
        return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def parse_csv(content: bytes, origin: str) -> CsvTable:
    """The table in a CSV file: UTF-8 with or without a mark, or UTF-16 with one; comma, semicolon or tab.

    Args:
        content: The file's bytes.
        origin: The file, for messages.

    Raises:
        UsageError: It is no such text, a row has another number of cells than the header, or a column occurs twice.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(f"{origin} is text neither in UTF-8 nor, with a byte order mark, in UTF-16.") from error
    separator = _separator_of(text)
    if encoding == "utf-16" or separator != ",":
        _logger.info("%s is in %s, its cells separated by %s.", origin, encoding.upper(), _SEPARATORS[separator])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = list[tuple[int, tuple[str, ...]]]()
    try:
        header = tuple(next(reader, ()))
        if not header:
            raise UsageError(f"{origin} is empty.")
        for cells in reader:
            if not cells:  # an empty line
                continue
            if len(cells) != len(header):
                raise UsageError(
                    f"{origin}: line {reader.line_num} has {len(cells)} cells; the header has {len(header)}."
                )
            rows.append((reader.line_num, tuple(cells)))
    except csv.Error as error:
        raise UsageError(f"{origin}: line {reader.line_num} is not CSV: {error}.") from error
    names = [name.lower() for name in header]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{origin} has the column {doubled[0]} more than once.")
    return CsvTable(origin, header, tuple(rows))


def _separator_of(text: str) -> str:
    """What separates most cells of the first line, outside of quotes; a comma where nothing does."""
    first, is_quoted, counts = text.split("\n", 1)[0], False, dict.fromkeys(_SEPARATORS, 0)
    for character in first:
        is_quoted ^= character == '"'
        if not is_quoted and character in counts:
            counts[character] += 1
    return max(counts, key=lambda separator: counts[separator])
