"""Text that others chose, such as names, labels and addresses, made safe to print, to store and to open in a spreadsheet.

A file name or a label may hold what moves a terminal's cursor, what a spreadsheet runs as a formula, or a password. Each of these
has one function here, and everything that prints or writes such text goes through it.
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import IO, Any

# C0, DEL and C1; marks and overrides of the direction of text; separators of lines; halves of characters.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_LINE_END = "\r\n"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_HIDDEN = "***"
_USER_INFO = re.compile(r"//([^\s/?#'\"<>@:]*):([^\s/?#'\"<>]*)@")
_DATABASE = re.compile(
    r"((?:postgres|mysql|mariadb|mssql|oracle|mongodb|redis|amqp)[\w+]*)://([^\s/?#'\"<>@:]*):([^\s'\"<>]*)@",
    re.IGNORECASE,
)
_PASSWORD_WITH_SLASHES = re.compile(r"(?<=\w)://([^\s/?#'\"<>@:]*):(?!\d+(?:[/?#]|$))([^\s'\"<>@]*)@")
_TOKEN_AS_USER = re.compile(r"(https?)://([^\s/?#'\"<>@:]{16,})@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&;#](?:[\w.-]|%2d)*"
    r"(?:token|secret|passw|pwd|signature|credential|api[-_]?key|access[-_]?key|accesskeyid|delegation|jwt)"
    r"(?:[\w.-]|%2d)*|[?&;#](?:sig|key|auth|code|pass|sas))=[^&;#\s'\"<>]+",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    r"""`text` as one line without control characters: ``\x1b``, ``\n``, ``\u202e`` in their place."""
    return _UNSEEN.sub(lambda found: _code_of(found[0]), text)


def printable_lines(text: str) -> str:
    """Like `printable`, but line breaks stay; what follows one is indented, so that no name can look like a new message."""
    first, *others = text.split("\n")
    indented = [line if not line or line.startswith("  ") else f"  {line}" for line in others]
    return "\n".join(map(printable, [first, *indented]))


def without_secrets(text: str) -> str:
    """`text` with ``***`` in place of the passwords, tokens and signatures in its URLs.

    Known are ``user:password@host``, a token in place of a user, and parameters such as ``?token=``, ``&X-Amz-Signature=``.
    """
    if "@" in text:
        text = _DATABASE.sub(rf"\1://\2:{_HIDDEN}@", text)
        text = _USER_INFO.sub(rf"//\1:{_HIDDEN}@", text)
        text = _PASSWORD_WITH_SLASHES.sub(rf"://\1:{_HIDDEN}@", text)
        text = _TOKEN_AS_USER.sub(rf"\1://{_HIDDEN}@", text)
    return _PARAMETER.sub(rf"\1={_HIDDEN}", text) if "=" in text else text


def without_secrets_in(document: Any) -> Any:
    """A JSON document with `without_secrets` of each text in it."""
    if isinstance(document, dict):
        return {key: without_secrets_in(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [without_secrets_in(value) for value in document]
    return without_secrets(document) if isinstance(document, str) else document


def printable_json(text: str) -> str:
    """A line of JSON that says the same, and that a terminal shows as it is."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown(text: str) -> str:
    """`text` as a line of a message or a cell of a table: `printable`, and `without_secrets`."""
    return printable(without_secrets(text))


class CsvWriter:
    """Writes rows of CSV in which no cell is a formula: a text that begins like one gets an apostrophe before it.

    Numbers stay as they are, and so do texts that are numbers. `read_cell` takes the apostrophe away.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file, self._line = file, io.StringIO()
        self._writer = csv.writer(self._line, lineterminator=_LINE_END)  # what ends a line is quoted within a cell

    def write_row(self, cells: Iterable[Any]) -> None:
        """Writes a row."""
        self._writer.writerow([_safe_cell(cell) for cell in cells])
        self._file.write(self._line.getvalue().removesuffix(_LINE_END) + "\n")
        self._line.seek(0)
        self._line.truncate()

    def write_rows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Writes rows."""
        for row in rows:
            self.write_row(row)


def read_cell(text: str) -> str:
    """The text that `CsvWriter` was given, from a cell that it wrote."""
    return text[1:] if text.startswith("'") and _is_like_a_formula(text.lstrip("'")) else text


def _safe_cell(cell: Any) -> Any:
    if isinstance(cell, str) and _is_like_a_formula(cell.lstrip("'")):
        return f"'{cell}"
    return cell


def _is_like_a_formula(text: str) -> bool:
    return text.startswith(_FORMULA) and not _NUMBER.fullmatch(text)


def _code_of(character: str) -> str:
    number = ord(character)
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
