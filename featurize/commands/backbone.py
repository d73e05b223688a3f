"""The command `featurize backbone`: where one network can be cut, and what each of its layers costs."""

from typing import TYPE_CHECKING, Annotated

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.progress import shown_progress

if TYPE_CHECKING:
    from rich.table import Table

    from featurize.engines.parts import NetworkLayer
    from featurize.jobs.backbones_listing import LayersOfBackbone

_NOTES = (
    "MFLOPs: millions of operations for one image, two for a multiplication with its addition, of convolutions, dense layers and "
    "products of matrices; all else counts as 0. ?: not known.",
)
_PIPE_WIDTH = 200  # characters


def backbone_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FILE",
            help="A network as in `featurize backbones`, a .keras or .onnx file, or a folder from Hugging Face, as ./dinov2.",
        ),
    ],
    height: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Of the input in pixels; for networks that take images of any size."),
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, max=4096, help="Of the input in pixels.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Lists the layers of a network that a recipe can name, with shapes, parameters, operations and the share of each."""
    with reported_errors(), shown_progress(as_json=as_json):
        from featurize.jobs.backbones_listing import list_layers

        listed = list_layers(name, height=height, width=width)
        if not as_json:
            _print(listed)
        print_result(listed.as_dict(), as_json=as_json)


def _print(listed: "LayersOfBackbone") -> None:
    from featurize.console import make_console

    console = make_console()
    if not console.is_terminal:
        console = make_console(width=_PIPE_WIDTH)  # a pipe has no width
    title = f"{listed.name}, for images of {listed.height} x {listed.width}"
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    console.print(_table(listed), highlight=False)
    for note in _NOTES:
        console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)


def _table(listed: "LayersOfBackbone") -> "Table":
    from rich.table import Table

    from featurize.display import as_cell

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_footer=True)
    total = listed.multiply_adds
    operations = f"{listed.known_multiply_adds * 2 / 1e6:,.2f}"
    footer = {
        "layer": "total",
        "parameters": f"{listed.parameters:,}",
        "MFLOPs": operations if total is not None else f"{operations} + ?",
        "share": "100.0 %" if total else "",
    }
    for name in ("layer", "type", "output", "features", "parameters", "MFLOPs", "share", ""):
        is_number = name in ("features", "parameters", "MFLOPs", "share")
        table.add_column(
            name,
            footer.get(name, ""),
            justify="right" if is_number else "left",
            overflow="fold",
            footer_style="bold",
        )
    for layer in listed.layers:
        shape, features, share = layer.shape, layer.features, listed.share_of(layer)
        table.add_row(
            as_cell(layer.name),
            as_cell(layer.kind),
            "?" if shape is None else " x ".join("?" if length is None else f"{length:,}" for length in shape),
            ("?" if features is None else f"{features:,}") if layer.can_be_cut else "",
            f"{layer.parameters:,}",
            "?" if layer.multiply_adds is None else f"{layer.multiply_adds * 2 / 1e6:,.2f}",
            "" if share is None else f"{share:.1f} %",
            _mark(layer, listed),
        )
    return table


def _mark(layer: "NetworkLayer", listed: "LayersOfBackbone") -> str:
    """What a recipe should know of a layer beside its name."""
    marks = []
    if not layer.can_be_cut:
        marks.append("cannot be cut")
    if layer.is_default:
        marks.append("default")
    if layer.name == listed.usual_layer:
        marks.append("before the classifier")
    if layer.needs_pooling:
        marks.append("with :cls or :mean")
    return ", ".join(marks)
