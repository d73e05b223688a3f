"""The command `featurize run`."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from featurize.commands.options import JsonOption, SetOption, print_result, reported_errors
from featurize.progress import shown_progress

if TYPE_CHECKING:
    from featurize.building.build import BuildResult
    from featurize.engines.engine import Engine
    from featurize.recipes.recipe import FeaturizeRecipe


def run_command(
    recipe: Annotated[
        str, typer.Argument(help="The TOML recipe; its sections images, backbone and features are used.")
    ],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs images through a frozen backbone: an images table or source folder becomes a feature set."""
    with reported_errors(), shown_progress(as_json=as_json):
        from featurize.console import show_logs
        from featurize.recipes.recipe import origin_of, read_recipe, upper_half

        show_logs()
        checked = upper_half(read_recipe(recipe, overrides), origin=origin_of(recipe))
        from featurize.building.starting_session import start_session

        with start_session("firn featurize", warm_up=lambda: _engine_of_workers(checked)) as spark:
            # Imported while Java starts.
            from featurize.commands.build_report import build_numbers, report_build
            from featurize.jobs.calls import run

            features = run(recipe, spark=spark, overrides=overrides)
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


def _engine_of_workers(recipe: "FeaturizeRecipe") -> "Engine | None":
    from featurize.jobs.engine_choice import engine_of_workers

    return engine_of_workers(recipe)
