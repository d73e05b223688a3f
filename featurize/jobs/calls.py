"""The jobs as one call each, in the caller's Spark session or in one made for the call."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pyspark.sql import SparkSession

from featurize import storage
from featurize.backbones.spec import PreparedBackbone
from featurize.building.session import borrowed_session
from featurize.building.starting_session import StartingSession, borrowed_or_starting
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.engines.engine import NAMES
from featurize.errors import UsageError
from featurize.jobs import ingest as ingest_job
from featurize.jobs.add_column import add_columns
from featurize.jobs.engine_choice import engine_of_workers
from featurize.jobs.features import Features
from featurize.jobs.images import Images
from featurize.jobs.run import featurize
from featurize.progress import shown_in_notebook
from featurize.recipes.recipe import Recipe, origin_of, read_recipe, upper_half
from featurize.recipes.toml_settings import Overrides, check_settings
from featurize.sources.cards import Card, find_card, read_card
from featurize.tables.manifests import FeaturesManifest, ImagesManifest
from featurize.tables.readable import correct_rows

_CARDS = Path("datasets")
_logger = logging.getLogger(__name__)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    spark: SparkSession | StartingSession | None = None,
    overrides: Overrides | None = None,
) -> Features:
    """Runs images through a frozen backbone: makes the feature set of a recipe, or adds the images that it lacks.

    Args:
        recipe: the path of a TOML file; or its sections by name, as a TOML reader returns them; or what `read_recipe`
            returned. Its sections `images`, `backbone` and `features` are used.
        spark: the session to run in, which is not stopped. Default: the active session, or else one made for this call.
        overrides: values by dotted key, as in ``{"images.source": "hdfs:///photos"}``; or texts of the form
            ``images.source=photos``.

    Raises:
        UsageError: the recipe has faults; or its images, its backbone or what is at its URL do not match it.
        JobError: the job failed, another one writes to the same place, or too many images could not be read.
    """
    checked = upper_half(read_recipe(recipe, overrides), origin=origin_of(recipe))
    warm_up = engine_of_workers(checked)
    with shown_in_notebook(), borrowed_or_starting(spark, "firn featurize", warm_up=warm_up) as session:
        result, _ = featurize(session, checked, card_folders=_card_folders(recipe), on_backbone=_log_backbone)
    url = storage.absolute_url(checked.features.url)
    return Features(url, correct_rows(url, cast(FeaturesManifest, result.manifest)), build=result)


def add_column(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    where: str | None = None,
    columns: Sequence[str] = (),
    spark: SparkSession | None = None,
    overrides: Overrides | None = None,
) -> Features:
    """Computes the columns of features that a recipe names and its feature set lacks; or columns anew, for some rows.

    Args:
        recipe: as for `run`; it names all columns, those that exist too.
        where: a condition in Spark's SQL over the columns of the set, such as ``label = 'cat' AND width > 100``: the rows whose
            columns are computed anew. None: columns that are missing are computed for all rows.
        columns: with `where`, the columns to compute; empty: all.
        spark: as for `run`.
        overrides: as for `run`.

    Raises:
        UsageError: there is no feature set, it does not match the recipe, or images of its rows are no longer there.
        JobError: the job failed, an image has changed, or another job writes to the same place.
    """
    checked = upper_half(read_recipe(recipe, overrides), origin=origin_of(recipe))
    with shown_in_notebook(), borrowed_or_starting(spark, "firn add-column") as session:
        result = add_columns(
            session,
            checked,
            where=where,
            columns=columns,
            card_folders=_card_folders(recipe),
            on_backbone=_log_backbone,
        )
    url = storage.absolute_url(checked.features.url)
    return Features(url, correct_rows(url, cast(FeaturesManifest, result.manifest)), build=result)


def ingest(
    card: str | Path | Mapping[str, Any] | Card,
    output: str | Path,
    *,
    spark: SparkSession | None = None,
    source: str | Path | None = None,
    follow_links: bool = False,
    max_reject_fraction: float = MAX_REJECT_FRACTION,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> Images:
    """Packs a data set into an images table, with metadata and split of each image; every image is decoded once to check it.

    Args:
        card: the path of the TOML file that describes the data set, its name in the folder `datasets`, or its keys.
        output: URL of the images table.
        spark: the session to run in, which is not stopped. Default: the active session, or else one made for this call.
        source: folder or URL of the data set; default: the card's own source.
        follow_links: whether links that lead out of the data set are followed; otherwise they are rejects.
        max_reject_fraction: largest share of unreadable images, in [0, 1]; above it nothing is published.
        decode_timeout_s: seconds; an image that takes longer to decode is rejected.

    Raises:
        UsageError: there is no such card, it has faults, or its source is missing.
        JobError: the job failed, another one writes to the same place, or too many images could not be read.
    """
    _check_limits(max_reject_fraction, decode_timeout_s)
    checked = _read_card(card)
    with shown_in_notebook(), borrowed_session(spark, "firn ingest") as session:
        result = ingest_job.ingest(
            session,
            checked,
            str(output),
            source=None if source is None else str(source),
            follow_links=follow_links,
            max_reject_fraction=max_reject_fraction,
            decode_timeout_s=decode_timeout_s,
        )
    images = Images(storage.absolute_url(str(output)), cast(ImagesManifest, result.manifest), build=result)
    _log_other_numbers(checked, images)
    return images


def _card_folders(recipe: str | Path | Mapping[str, Any] | Recipe) -> list[Path]:
    """Where the cards that a recipe names are looked up."""
    beside = [Path(recipe).absolute().parent.parent / "datasets"] if isinstance(recipe, str | Path) else []
    return [_CARDS, *beside]


def _check_limits(max_reject_fraction: float, decode_timeout_s: float) -> None:
    if not 0 <= max_reject_fraction <= 1:
        raise UsageError(f"`max_reject_fraction` must be in [0, 1]. Got {max_reject_fraction!r}.")
    if not decode_timeout_s > 0:
        raise UsageError(f"`decode_timeout_s` must be more than 0. Got {decode_timeout_s!r}.")


def _read_card(card: str | Path | Mapping[str, Any] | Card) -> Card:
    if isinstance(card, Card):
        return card
    if isinstance(card, Mapping):
        return check_settings(Card, card, origin="the card")
    path = find_card(str(card), (_CARDS,))
    if path is None:
        raise UsageError(f"there is no card {str(card)!r}: give the path of a .toml file, or a name in datasets/.")
    return read_card(path)


def _log_backbone(backbone: PreparedBackbone) -> None:
    """Logs the backbone and the shape of its features."""
    spec = backbone.spec
    shape = " x ".join(str(size) for size in spec.feature_shape)
    where = f" at {spec.layer}, weights {spec.weights}" if not spec.is_pixels else ""
    _logger.info("backbone %s%s: %s features from %d x %d images", spec.name, where, shape, spec.height, spec.width)
    if not spec.is_pixels:
        measured = backbone.measured
        speeds = ", ".join(
            f"{NAMES[one.engine]} {one.precision} {one.images_per_s:.3g}" for one in measured if not one.error
        )
        how = f"; measured, images/s: {speeds}" if speeds else ""
        _logger.info("computed by %s in %s%s", NAMES[spec.engine], spec.precision, how)
    if backbone.report is not None and backbone.report.notice:
        _logger.warning("%s", backbone.report.notice)


def _log_other_numbers(card: Card, images: Images) -> None:
    """Warns if the number of images or classes in the table is not that of the card."""
    found = {"images": images.manifest.row_count + images.manifest.reject_count, "classes": len(images.classes)}
    for name, number in card.expect.model_dump(exclude_none=True).items():
        if found[name] != number:
            _logger.warning("the card expects %d %s; there are %d.", number, name, found[name])
