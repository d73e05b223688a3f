"""Messages to the user, on standard error."""

import logging

from rich.console import Console
from rich.markup import escape

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Prints a line of progress on standard error."""
    console.print(escape(text), soft_wrap=True)


def warn(text: str) -> None:
    """Prints a line marked as a note, on standard error."""
    console.print(f"[bold yellow]note:[/] {escape(text)}", soft_wrap=True)


def show_logs(name: str = "featurize") -> None:
    """Shows what a package logs, as a command does: INFO as plain lines, WARNING and above as notes."""
    logger = logging.getLogger(name)
    if not any(isinstance(handler, _ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(_ConsoleHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _ConsoleHandler(logging.Handler):
    """Log records as lines of the console."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        (warn if record.levelno >= logging.WARNING else say)(record.getMessage())
