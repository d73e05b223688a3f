"""The command `finetune views`."""

from typing import TYPE_CHECKING, Annotated

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import say, warn
from featurize.errors import UsageError
from finetune.commands.models import RegistryOption

if TYPE_CHECKING:
    from featurize.tables.predictions import PublishedViews


def views_command(
    output: Annotated[str, typer.Argument(help="The URL of the predictions.")],
    name: Annotated[
        str | None, typer.Option(help="The registered model whose aliases the views follow from now on.")
    ] = None,
    aliases: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="ALIAS=MODEL",
            help="An alias and its model, where the views follow no registry; repeatable.",
        ),
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Updates the views on predictions: `latest`, which shows the champion's, and one for each alias."""
    with reported_errors():
        from finetune.prediction.views import publish_views

        chosen = dict(_parse(text, registry) for text in aliases or ())
        published = publish_views(output, registered_model=name, registry=registry, set_aliases=chosen)
        report_views(published)
        views = published.views
        print_result(
            {"predictions": published.url, "views": views.by_name(), "registered_model": views.registered_model},
            as_json=as_json,
        )


def report_views(published: "PublishedViews") -> None:
    """Says what the views show, and what they cannot show yet."""
    views = published.views
    for name, model_id in views.by_name().items():
        manifest = published.manifests[model_id]
        say(f"{name}: {model_id[:16]}, {manifest.row_count:,} images, updated {manifest.updated_at}")
    for alias, model_id in published.missing.items():
        shown = f"; the view still shows {views.aliases[alias][:16]}" if alias in views.aliases else ""
        warn(
            f"{alias} is {model_id[:16]} now, which has predicted nothing here{shown}. Run `finetune predict` with it."
        )


def _parse(text: str, registry: str | None) -> tuple[str, str]:
    """An alias and the `model_id` of its model, which is named by a folder, the id of a run, name@alias or zk://host:port/path."""
    from featurize.tables.predictions import RESERVED
    from finetune.registry.resolve import read_folder, resolve_model

    alias, equals, model = text.partition("=")
    if not (alias.isidentifier() and equals and model) or alias in RESERVED:
        raise UsageError(
            f"`--set` must be ALIAS=MODEL, where ALIAS is a word other than {', '.join(RESERVED)}. Got {text!r}."
        )
    return alias, read_folder(resolve_model(model, registry=registry)).model_id
