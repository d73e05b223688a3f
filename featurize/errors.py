"""The errors a user meets. Each is one message that names the thing at fault; the commands print it without a trace."""


class FirnError(Exception):
    """Base of every error that Firn raises on purpose. `exit_status` is what the command ends with."""

    exit_status = 1


class UsageError(FirnError):
    """The call, the recipe or the card is wrong: nothing was started. Exit status 2."""

    exit_status = 2


class JobError(FirnError):
    """The call was right and the job failed. Exit status 1."""


class SharedError(JobError):
    """A `JobError` that every rank of a distributed job raises alike, so that one may speak for all."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says, or its name where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
