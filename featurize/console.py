"""Messages to the user, on standard error, and the consoles on which tables are printed.

Everything that is printed passes through here: control characters are escaped, and passwords in URLs are masked.
"""

import logging
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook
from rich.control import Control
from rich.markup import escape
from rich.segment import Segment

from featurize.foreign_text import printable, printable_lines, without_secrets


class _Escaped:
    """Another renderable, without control characters in its text."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._inner, options):
            text = segment.text
            if segment.control or not text or (text.isprintable() and text.isascii()):
                yield segment
            else:
                yield Segment("\n".join(map(printable, text.split("\n"))), segment.style)


class _Escaping(RenderHook):
    """Escapes what is printed, whoever made it."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """See `RenderHook`."""
        return [part if isinstance(part, Control) else _Escaped(part) for part in renderables]


def make_console(**settings: Any) -> Console:
    """A console of Rich on which control characters in names and labels are escaped; `settings` are those of `Console`."""
    made = Console(**settings)
    made.push_render_hook(_Escaping())
    return made


console = make_console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Prints a line of progress on standard error."""
    console.print(_in_markup(text), soft_wrap=True)


def warn(text: str) -> None:
    """Prints a line marked as a note, on standard error."""
    console.print(f"[bold yellow]note:[/] {_in_markup(text)}", soft_wrap=True)


def fail(text: str) -> None:
    """Prints a line marked as an error, on standard error."""
    console.print(f"[bold red]error:[/] {_in_markup(text)}", soft_wrap=True)


def _in_markup(text: str) -> str:
    return escape(printable_lines(without_secrets(text)))


def show_logs(name: str = "featurize", level: int = logging.INFO) -> None:
    """Shows what a package logs from `level` on, as a command does: INFO as plain lines, WARNING and above as notes."""
    logger = logging.getLogger(name)
    if not any(isinstance(handler, _ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(_ConsoleHandler())
        logger.propagate = False
    logger.setLevel(level)


class _ConsoleHandler(logging.Handler):
    """Log records as lines of the console."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        (warn if record.levelno >= logging.WARNING else say)(record.getMessage())
