"""The errors that users see. Each is one message that names what is at fault; commands print it without a stack trace."""

from featurize.foreign_text import without_secrets


class FirnError(Exception):
    """Base of every error that Firn raises on purpose, with passwords masked. `exit_status` is the exit status of the command."""

    exit_status = 1

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_secrets(part) if isinstance(part, str) else part for part in parts))


class UsageError(FirnError):
    """The call, the recipe or the data set card is wrong: nothing was started. Exit status 2."""

    exit_status = 2


class JobError(FirnError):
    """The call was right but the job failed. Exit status 1."""


class SharedError(JobError):
    """A `JobError` that every rank of a distributed job raises alike, so that only one needs to report it."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the error's name where the message is empty."""
    text = without_secrets(str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
