"""What both commands share: results as JSON, errors as one message, exit status 0, 1 or 2."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from featurize import __version__
from featurize.backbones.lean_keras import leave_out_keras_extras
from featurize.console import fail, show_logs
from featurize.errors import FirnError, JobError, SharedError, UsageError
from featurize.foreign_text import printable_json

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key of the recipe, as in images.source=photos."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Prints the result as one JSON object, as the last line.")]
RejectFractionOption = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of unreadable images; above it nothing is published.")
]
FollowLinksOption = Annotated[
    bool,
    typer.Option(
        "--follow-links", help="Follows links that lead out of the images' folder; otherwise they are rejects."
    ),
]
DecodeTimeoutOption = Annotated[
    float, typer.Option(min=0.001, help="Seconds; an image that takes longer to decode is rejected.")
]

# If every rank finds the same fault, rank 0 reports it, and horovodrun ends the others before they report it again.
_RANK_0_SPEAKS_S = 10.0


def make_app(purpose: str) -> typer.Typer:
    """The Typer application of a package's commands, with ``--version``; `purpose` is the first line of its help."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, help=purpose)

    @app.callback(invoke_without_command=True, help=purpose)
    def version_option(
        version: Annotated[bool, typer.Option("--version", help="Prints the version and exits.")] = False,
    ) -> None:
        if version:
            typer.echo(f"firn {__version__}")
            raise typer.Exit
        leave_out_keras_extras()  # this process is Firn's own
        for package in ("featurize", "finetune"):
            show_logs(package, logging.WARNING)

    return app


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turns an error that Firn raised on purpose into its message and its exit status, without a stack trace."""
    try:
        yield
    except FirnError as error:
        if isinstance(error, UsageError | SharedError) and os.environ.get("HOROVOD_RANK", "0") != "0":
            time.sleep(_RANK_0_SPEAKS_S)
        fail(str(error))
        raise typer.Exit(error.exit_status) from error
    except OSError as error:  # of the storage: no permission, a full disk, a file where a folder should be
        where = f"{error.filename}: " if error.filename else ""
        fail(where + (error.strerror or str(error)))
        raise typer.Exit(JobError.exit_status) from error


def print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints the result of a command as the last line of standard output, if `as_json`."""
    if as_json:
        sys.stdout.write(printable_json(json.dumps(result, ensure_ascii=False)) + "\n")
        sys.stdout.flush()
