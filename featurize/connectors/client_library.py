"""Client libraries of other systems, which are extras of Firn."""

from importlib import import_module
from typing import Any

from featurize.errors import UsageError


def client_library(module: str, *, system: str, extra: str) -> Any:
    """A module of a client library.

    Args:
        module: Name of the module.
        system: The system that the library is for, for the message.
        extra: The extra of Firn that installs the library.

    Raises:
        UsageError: The library is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise UsageError(
            f"{system} needs the package {library}, which is not installed: it is in Firn's extra `{extra}`, "
            f"pip install 'firn[{extra}]'."
        ) from error
