"""Firn's tables as temporary views of a Spark session, found by their URLs or by a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize.errors import UsageError
from featurize.jobs.features import Features
from featurize.jobs.images import Images
from featurize.recipes.recipe import Recipe, read_recipe
from featurize.sql.tables import SqlTable, SqlView, find_tables
from featurize.storage import SCHEMES
from featurize.tables.manifests import ImagesManifest
from featurize.tables.publication import read_manifest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def register_views(
    spark: "SparkSession",
    *,
    images: str | Path | Images | None = None,
    features: str | Path | Features | None = None,
    predictions: str | Path | None = None,
    tables: Mapping[str, str | Path] | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    version: int | None = None,
) -> list[str]:
    """Makes temporary views of tables, for ``spark.sql``. They show what is published now, with corrected labels.

    There is a view for each table that is given, `images`, `features` and `predictions`; `rejects`, with the rejects of all
    three; and for predictions also `latest`, a view for each alias, and `drift` if they were tested for drift.

    Args:
        images: URL of an images table.
        features: URL of a feature set.
        predictions: URL of predictions.
        tables: URLs of any other tables, or folders of Parquet, by the name of their view.
        recipe: a recipe that names the tables that are not given.
        version: an older version of the feature set, or of the images table where there is no feature set.

    Returns:
        The names of the views.

    Raises:
        UsageError: no table is named; a URL holds no such table; or a name is invalid, or used twice.
        JobError: a table is damaged.
    """
    from featurize.sql.query import register_views as register

    found = find_named_tables(
        images=images, features=features, predictions=predictions, tables=tables, recipe=recipe, version=version
    )
    register(spark, found)
    return [table.name for table in found]


def find_named_tables(
    *,
    images: str | Path | Images | None = None,
    features: str | Path | Features | None = None,
    predictions: str | Path | None = None,
    tables: Mapping[str, str | Path] | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    version: int | None = None,
) -> list[SqlTable | SqlView]:
    """The tables that the arguments name; see `register_views`."""
    named = {"images": images, "features": features, "predictions": predictions}
    urls = {} if recipe is None else _urls_of(read_recipe(recipe))
    urls |= {name: _url_of(table) for name, table in named.items() if table is not None}
    others = {name: str(url) for name, url in (tables or {}).items()}
    found = find_tables(**urls, others=others, version=version)
    if not found:
        raise UsageError("no table is named: give `images`, `features`, `predictions`, `tables` or `recipe`.")
    return found


def _url_of(table: str | Path | Features | Images) -> str:
    return table.url if isinstance(table, Features | Images) else str(table)


def _urls_of(recipe: Recipe) -> dict[str, str]:
    """The tables that a recipe names: its feature set, and its images if they are a table."""
    urls = {} if recipe.features is None else {"features": recipe.features.url}
    if recipe.images is not None:
        source = recipe.images.source
        known = "://" not in source or source.split(":", 1)[0] in SCHEMES
        if known and isinstance(read_manifest(source), ImagesManifest):
            urls["images"] = source
    return urls
