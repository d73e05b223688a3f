"""The command `featurize run`."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from featurize.commands.options import JsonOption, SetOption, print_result, reported_errors
from featurize.progress import shown_progress

if TYPE_CHECKING:
    from featurize.building.build import BuildResult


def run_command(
    recipe: Annotated[
        str, typer.Argument(help="The TOML recipe; its sections images, backbone and features are used.")
    ],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs images through a frozen backbone: an images table or source folder becomes a feature set."""
    with reported_errors(), shown_progress(as_json=as_json):
        import featurize
        from featurize.commands.build_report import build_numbers, report_build
        from featurize.console import show_logs

        show_logs()
        features = featurize.run(recipe, overrides=overrides)
        build = cast("BuildResult", features.build)
        report_build(build, features.url)
        print_result(
            {
                "features": features.url,
                **build_numbers(build),
                "weights": features.manifest.backbone["weights"],
                "precision": features.manifest.backbone["precision"],
                "columns": features.manifest.column_names,
            },
            as_json=as_json,
        )
