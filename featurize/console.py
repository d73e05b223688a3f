"""Lines for people, on standard error."""

from rich.console import Console
from rich.markup import escape

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """A line of progress, for people: on standard error."""
    console.print(escape(text), soft_wrap=True)


def warn(text: str) -> None:
    """A line that should not be overlooked."""
    console.print(f"[bold yellow]note:[/] {escape(text)}", soft_wrap=True)
