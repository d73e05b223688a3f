"""The commands `finetune models ...`, which list, compare, promote and archive the models of the registry."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import make_console, say, warn
from featurize.display import as_cell
from featurize.errors import UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from finetune.registry.log_model import LoggedModel

models_app = typer.Typer(no_args_is_help=True, help="The models of the registry: list, compare, promote, archive.")
_PLAIN: Any = {"box": None, "header_style": "bold"}
_WIDEST = 1000  # characters
_SHOWN_METRICS = ("best_validation_accuracy", "best_validation_loss", "test/accuracy", "test/f1")

RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry", help="The MLflow tracking URI; default: MLFLOW_TRACKING_URI, or sqlite:///runs/mlflow.db."
    ),
]
Model = Annotated[
    str, typer.Argument(help="A model: its folder, the id of its run, name@alias or zk://host:port/path.")
]


@models_app.command("list")
def list_command(
    experiment: Annotated[
        str | None, typer.Option(help="The experiment whose models are listed; default: all.")
    ] = None,
    with_archived: Annotated[bool, typer.Option("--all", help="Lists archived models too.")] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lists the models that were logged, the newest first."""
    with reported_errors(), _registry(registry) as (client, url):
        from finetune.registry.versions import list_models

        models = [model.as_dict() for model in list_models(client, experiment=experiment, with_archived=with_archived)]
        _print_models(models, make_console(stderr=as_json))
        print_result({"registry": url, "models": models}, as_json=as_json)


@models_app.command("compare")
def compare_command(one: Model, other: Model, registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """Compares two models: the settings in which they differ, and their scores."""
    with reported_errors():
        views = [_view(text, registry) for text in (one, other)]
        settings, metrics = (_beside(*(view[key] for view in views)) for key in ("settings", "metrics"))
        differing = {key: pair for key, pair in settings.items() if pair[0] != pair[1] and key != "model.url"}
        _print_pairs("setting", differing, (one, other), make_console(stderr=as_json))
        _print_pairs("score", metrics, (one, other), make_console(stderr=as_json))
        result = {"models": [view["model_id"] for view in views], "settings": differing, "metrics": metrics}
        print_result(result, as_json=as_json)


@models_app.command("promote")
def promote_command(
    model: Model,
    alias: Annotated[str, typer.Option(help="The alias: champion, challenger, or any other.")],
    name: Annotated[
        str | None,
        typer.Option(
            help="The registered model; default: the recipe's `registry.name`, or the name of the experiment."
        ),
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Gives an alias to a model, which becomes a version of a registered model. If it was not logged, it is logged first."""
    with reported_errors(), _registry(registry, create=True) as (client, url):
        from finetune.registry.versions import promote

        run = _run_of(client, model, registry, url)
        version, before = promote(client, run, alias, name=name)
        instead = f" in place of version {before}" if before else ""
        say(f"{version.name}@{alias} is version {version.version} now{instead}: run {run.info.run_id}.")
        result = {"name": version.name, "version": version.version, "alias": alias, "aliases": version.aliases}
        print_result({**result, "run_id": run.info.run_id, "previous_version": before}, as_json=as_json)


@models_app.command("archive")
def archive_command(
    model: Model,
    force: Annotated[
        bool, typer.Option("--force", help="Archives the model even if it has aliases, which it loses.")
    ] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Archives a model: `finetune models list` shows it only with --all. Nothing is removed."""
    with reported_errors(), _registry(registry) as (client, url):
        from finetune.registry.resolve import find_model
        from finetune.registry.versions import archive

        run = find_model(client, model, url)
        if run is None:
            raise UsageError(f"{model} was not logged to the registry {url}.")
        taken = [f"{one.name}@{alias}" for one in archive(client, run, force=force) for alias in one.aliases]
        say(f"run {run.info.run_id} is archived{f'; it is no longer {chr(44).join(taken)}' if taken else ''}.")
        print_result({"run_id": run.info.run_id, "aliases_taken_away": taken}, as_json=as_json)


def report_logged(logged: "LoggedModel | None") -> None:
    """Says where a model was logged, if it was."""
    if logged is None:
        return
    version = f", version {logged.version}" if logged.version else ""
    say(f"logged: run {logged.run_id}{version} of experiment {logged.experiment} in {logged.url}")
    if logged.notice:
        warn(logged.notice)


@contextmanager
def _registry(url: str | None, *, create: bool = False) -> "Iterator[tuple[MlflowClient, str]]":
    """The registry, and its URL as it may be shown."""
    from featurize.recipes.recipe import RegistrySettings
    from finetune.registry.client import open_registry, registry_at, registry_errors, shown

    absolute = str(registry_at(RegistrySettings(url=url)).url)
    client = open_registry(absolute, create=create)
    with registry_errors(absolute):
        yield client, shown(absolute)


def _run_of(client: "MlflowClient", model: str, registry: str | None, url: str) -> "Run":
    """The run of a model, which is logged first if it is a folder that was not logged."""
    from featurize.recipes.recipe import RegistrySettings
    from finetune.registry.client import registry_at
    from finetune.registry.log_model import log_to
    from finetune.registry.resolve import find_model, without_node

    model = without_node(model)
    run = find_model(client, model, url)
    if run is not None:
        return run
    logged = log_to(model, registry_at(RegistrySettings(url=registry)))
    report_logged(logged)
    return client.get_run(logged.run_id)


def _view(text: str, registry: str | None) -> dict[str, Any]:
    """Settings and scores of a model: from its folder, where one is named, or from its run."""
    from finetune.registry.client import MODEL_ID_TAG
    from finetune.registry.resolve import is_folder, named_run, read_folder, without_node
    from finetune.registry.run_values import evaluation_metrics, flat_settings, read_evaluations, summary_metrics

    text = without_node(text)
    if is_folder(text):
        card, metrics = read_folder(text), dict[str, float]()
        for found in read_evaluations(text).values():
            metrics |= evaluation_metrics(card, found)
        metrics |= {key: float(value) for key, value in card.history[-1].items() if key != "epoch"}
        metrics |= summary_metrics(card)
        return {"model_id": card.model_id, "settings": flat_settings(card), "metrics": metrics}
    with _registry(registry) as (client, url):
        data = named_run(client, text, url).data
        return {"model_id": data.tags[MODEL_ID_TAG], "settings": dict(data.params), "metrics": dict(data.metrics)}


def _beside(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of two mappings by key; None where a mapping lacks the key."""
    return {key: [one.get(key), other.get(key)] for key in sorted(one.keys() | other.keys())}


def _print_models(models: list[dict[str, Any]], console: Console) -> None:
    if not models:
        say("there are no models.")
        return
    shown = [key for key in _SHOWN_METRICS if any(key in model["metrics"] for model in models)]
    several = len({model["experiment"] for model in models}) > 1
    table = Table("run", "model", "created", *shown, "versions", *(["experiment"] if several else []), **_PLAIN)
    for model in models:
        table.add_row(*(as_cell(cell) for cell in _cells(model, shown)), *([as_cell(model["experiment"])] * several))
    _print_whole(table, console)


def _cells(model: Mapping[str, Any], shown: Sequence[str]) -> Iterator[str]:
    yield from (model["run_id"], model["run_name"], model["created_at"][:16].replace("T", " "))
    yield from (f"{model['metrics'][key]:.4f}" if key in model["metrics"] else "" for key in shown)
    versions = [
        f"{one['name']} {one['version']}" + "".join(f" @{a}" for a in one["aliases"]) for one in model["versions"]
    ]
    yield ", ".join([*versions, *(["archived"] if model["archived_at"] else [])])


def _print_pairs(what: str, pairs: Mapping[str, list[Any]], names: tuple[str, str], console: Console) -> None:
    if not pairs:
        say(f"no {what} differs.")
        return
    table = Table(what, *(as_cell(name) for name in names), **_PLAIN)
    for key, values in pairs.items():
        table.add_row(*(as_cell(cell) for cell in (key, *(_in_words(value) for value in values))))
    _print_whole(table, console)


def _print_whole(table: Table, console: Console) -> None:
    """Prints a table with nothing cut off, so that run ids can be copied, however narrow the terminal is."""
    for column in table.columns:
        column.no_wrap = True
    width = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    make_console(file=console.file, width=max(width, console.width)).print(table, highlight=False, crop=False)


def _in_words(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
