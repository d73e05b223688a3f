"""The command `featurize run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurize import storage
from featurize.commands.options import JsonOption, SetOption, print_result, reported_errors
from featurize.console import say, warn
from featurize.progress import shown_progress
from featurize.recipes.recipe import read_recipe, upper_half

if TYPE_CHECKING:
    from featurize.backbones.backbone import PreparedBackbone


def run_command(
    recipe: Annotated[str, typer.Argument(help="The TOML recipe; its upper half is read.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs images through a frozen backbone: an images table or source folder becomes a feature set."""
    with reported_errors(), shown_progress(as_json=as_json):
        settings = upper_half(read_recipe(recipe, overrides or ()), origin=recipe)
        from featurize.building.session import open_session
        from featurize.commands.build_report import build_numbers, report_build
        from featurize.jobs.run import featurize

        folders = (Path("datasets"), Path(recipe).absolute().parent.parent / "datasets")
        with open_session("firn featurize") as session:
            result, backbone = featurize(session, settings, card_folders=folders, on_backbone=_announce)
        url = storage.absolute_url(settings.features.url)
        report_build(result, url)
        numbers = {
            "features": url,
            **build_numbers(result),
            "weights": backbone.spec.weights,
            "precision": backbone.spec.precision,
        }
        print_result(numbers, as_json=as_json)


def _announce(backbone: "PreparedBackbone") -> None:
    """Says what the images will go through."""
    spec = backbone.spec
    shape = " x ".join(str(size) for size in spec.feature_shape)
    where = f" at {spec.layer}, weights {spec.weights}, {spec.precision}" if not spec.is_pixels else ""
    say(f"backbone {spec.name}{where}: {shape} features from {spec.height} x {spec.width} images")
    if backbone.report is not None and backbone.report.notice:
        warn(backbone.report.notice)
