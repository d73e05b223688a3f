"""The command `featurize describe`: a feature set, an images table or predictions on one screen."""

from typing import Annotated

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors


def describe_command(
    url: Annotated[str, typer.Argument(help="URL of a feature set, an images table, or the predictions of a model.")],
    as_json: JsonOption = False,
) -> None:
    """Describes a table on one screen: a feature set, an images table, or the predictions of a model."""
    with reported_errors():
        import featurize

        description = featurize.describe(url)
        if as_json:
            print_result(description.as_dict(), as_json=True)
        else:
            from featurize.console import make_console

            make_console().print(description, highlight=False)
