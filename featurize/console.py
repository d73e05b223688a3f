"""Messages to the user, on standard error."""

from rich.console import Console
from rich.markup import escape

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Prints a line of progress on standard error."""
    console.print(escape(text), soft_wrap=True)


def warn(text: str) -> None:
    """Prints a line that should not be overlooked, on standard error."""
    console.print(f"[bold yellow]note:[/] {escape(text)}", soft_wrap=True)
