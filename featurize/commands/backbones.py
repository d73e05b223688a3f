"""The command `featurize backbones`: which networks a recipe can name, what they cost, and how fast they are here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.errors import UsageError
from featurize.progress import shown_progress

if TYPE_CHECKING:
    from rich.table import Table

    from featurize.backbones.known import KnownBackbone
    from featurize.jobs.backbones_listing import MeasuredBackbone

_NOTES = (
    "Features, parameters and GFLOPs are those up to the layer, the last before the classifier: name it as `backbone.layer`.",
    "GFLOPs: billions of operations for one image, two for a multiplication with its addition; papers often count one.",
    "Preparation of RGB in [0, 255], done by Firn. none: nothing, or within the network; tf: to [-1, 1]; torch: to [0, 1], "
    "then ImageNet's mean and deviation; caffe: to BGR, without ImageNet's mean.",
)
_FILES = (
    "`backbone.name` may also be the path of a .keras file, of an .onnx file, or of a folder from Hugging Face that has an "
    ".onnx file, as in ./dinov2."
)
_RANDOM = (
    "Speed does not depend on the weights; the cosine does. With trained weights bfloat16 may change the features more, and "
    "`featurize run`, which compares them, may choose float32."
)


def backbones_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="The backbones to list, as in VGG16 or 'ResNet*'. Default: all."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measures the named ones here, with each installed engine; a minute or more each."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Lists the networks that a recipe can name: input, features, size and operations; with --measure also their speed."""
    with reported_errors(), shown_progress(as_json=as_json):
        from featurize.backbones.known import find_backbones

        found = find_backbones(names or ())
        if measure and not names:
            raise UsageError("`--measure` needs `NAME`, one or more: all of them would take an hour or longer.")
        measured = _measure(found) if measure else ()
        if not as_json:
            _print(found, measured, is_whole=not names)
        listed = {"backbones": [one.as_dict() for one in found], "files": [".keras", ".onnx", "folder"]}
        print_result({**listed, "measured": [one.as_dict() for one in measured]}, as_json=as_json)


def _measure(found: "Sequence[KnownBackbone]") -> "tuple[MeasuredBackbone, ...]":
    from featurize.jobs.backbones_listing import measure_backbone

    return tuple(measure_backbone(one) for one in found)


def _print(found: "Sequence[KnownBackbone]", measured: "Sequence[MeasuredBackbone]", *, is_whole: bool) -> None:
    from featurize.console import make_console

    console = make_console()
    if not console.is_terminal:
        console = make_console(width=160)  # a pipe has no width: nothing is cut
    console.print(_table(found), highlight=False)
    for note in (*_NOTES, *((_FILES,) if is_whole else ())):
        console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)
    for one in measured:
        cores = f"{one.threads} cores" if one.threads > 1 else "one core"
        title = f"\n{one.name} to {one.layer} on {cores}, in one process, with ready pixels; weights: {one.weights}"
        console.print(title, highlight=False, markup=False, soft_wrap=True)
        console.print(_speeds(one), highlight=False)
    if any(one.has_random_weights for one in measured):
        console.print(_RANDOM, style="dim", highlight=False, markup=False, soft_wrap=True)


def _table(found: "Sequence[KnownBackbone]") -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("name", "input", "features", "layer", "parameters", "GFLOPs", "preparation"):
        is_number = name in ("features", "parameters", "GFLOPs")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for one in found:
        if one.is_pixels:
            table.add_row(one.name, "any", "pixels", "", "0", "0", one.preparation)
            continue
        table.add_row(
            one.name,
            f"{one.height} x {one.width}",
            f"{one.features:,}",
            one.layer,
            f"{one.parameters / 1e6:.1f} M",
            f"{one.flops / 1e9:.2f}",
            one.preparation,
        )
    return table


def _speeds(one: "MeasuredBackbone") -> "Table":
    """The engines of a backbone, the best marked."""
    from rich.table import Table

    from featurize.display import as_cell
    from featurize.engines.engine import NAMES

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("engine")
    table.add_column("precision")
    table.add_column("images/s", justify="right")
    table.add_column("batch", justify="right")
    table.add_column("cosine to float32", justify="right")
    table.add_column("")
    for each in one.measured:
        engine, precision = NAMES[each.engine], each.precision
        if each.error is not None:
            table.add_row(engine, precision, "", "", "", as_cell(each.error))
            continue
        mark = "best" if each is one.best else "" if each.is_faithful else "other features"
        table.add_row(engine, precision, f"{each.images_per_s:,.1f}", str(each.batch_size), f"{each.cosine:.6f}", mark)
    return table
