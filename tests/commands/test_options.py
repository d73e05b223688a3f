"""What both commands share: every error on purpose is one message and an exit status, and no trace."""

import pytest
import typer

from featurize.commands.options import reported_errors
from featurize.errors import JobError, UsageError


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("no such [layer]"), 2, "error: no such [layer]"),
        (JobError("all images were rejected"), 1, "error: all images were rejected"),
        (PermissionError(13, "Permission denied", "/out/x"), 1, "error: /out/x: Permission denied"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device"),
    ],
)
def test_errors_become_a_message_and_an_exit_status(
    error: Exception, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as raised, reported_errors():
        raise error
    assert raised.value.exit_code == status
    assert capsys.readouterr().err.strip() == message


def test_other_errors_are_bugs_and_show_their_trace() -> None:
    with pytest.raises(ZeroDivisionError), reported_errors():
        raise ZeroDivisionError
