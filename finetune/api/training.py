"""`fit`: from a recipe to a trained model."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize.errors import UsageError
from featurize.recipes.recipe import Recipe, lower_half, origin_of, read_recipe
from featurize.storage import absolute_url
from featurize.tables.description import notes_on_rows
from finetune.api.model import Model
from finetune.api.notebook import live_chart
from finetune.registry.client import check_registry
from finetune.registry.log_model import log_fit
from finetune.rows.row_query import describe_selection
from finetune.training.checkpoints import has_checkpoint
from finetune.training.launch import launched_ranks, train_on_ranks
from finetune.training.loop import EpochReport
from finetune.training.plan import TrainingPlan, find_trained, plan_training

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OnPlan = Callable[[TrainingPlan], EpochReport | None]
_logger = logging.getLogger(__name__)


def fit(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    ranks: int = 1,
    spark: "SparkSession | None" = None,
    overrides: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Model:
    """Trains the model of a recipe on its feature set. In a notebook a chart of the loss grows with the epochs.

    A model that was trained before with the same settings on the same rows is returned as it is. If the recipe or the
    environment names a registry, the model is logged there.

    Args:
        recipe: the path of a TOML file; or its sections by name, as a TOML reader returns them; or a recipe that was read
            before. Its sections `features`, `model`, `training` and `registry` are used.
        ranks: processes that train together, each on its share of the rows. 1 trains in this process; more are tasks of a
            Spark job that run at the same time, through Horovod.
        spark: the session whose free slots several ranks take; it is not stopped. Default: the active session, or else one
            made for this call.
        overrides: values by dotted key, as in ``{"training.epochs": 20}``.
        overwrite: replaces another model at `model.url`.
        resume: resumes from the checkpoint that a training with the same settings has left, if it has left one.

    Raises:
        UsageError: the recipe has faults, its feature set is missing, or another model is at `model.url`; or this is called
            under horovodrun.
        JobError: the training failed, or a rank died or stalled.
    """
    if launched_ranks() is not None:
        raise UsageError("`fit` starts its ranks itself. Under horovodrun run the command `finetune fit`.")
    with live_chart() as on_epoch:
        model = train_recipe(
            recipe,
            ranks=ranks,
            spark=spark,
            overrides=overrides,
            overwrite=overwrite,
            resume=resume,
            on_epoch=lambda plan: on_epoch,
        )
    if model is None:  # only ranks of horovodrun have none
        raise UsageError("`fit` cannot be called on a rank of horovodrun.")
    return model


def train_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    ranks: int = 1,
    spark: "SparkSession | None" = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_epoch: OnPlan = lambda plan: None,
    on_trained: Callable[[Model], None] = lambda model: None,
) -> Model | None:
    """As `fit`, and also under horovodrun, where each rank calls it.

    Args:
        overrides: as for `fit`, or texts of the form ``training.epochs=20``.
        on_epoch: called with the plan; returns a function to call after each epoch, or None.
        on_trained: called with the model before it is logged, so that a registry that fails does not hide it.

    Returns:
        The model; None on the ranks of horovodrun other than rank 0.
    """
    if ranks < 1:
        raise UsageError(f"`ranks` must be at least 1. Got {ranks}.")
    checked = lower_half(read_recipe(recipe, overrides), origin=origin_of(recipe))
    plan = plan_training(checked, ranks=launched_ranks() or ranks)
    card = find_trained(plan, overwrite=overwrite)
    is_reused, is_first = card is not None, os.environ.get("HOROVOD_RANK", "0") == "0"
    if is_first:
        _log_plan(plan, is_reused=is_reused, resume=resume)
    if card is None:
        if is_first:
            check_registry(plan.recipe.registry)
        report = on_epoch(plan) if is_first else None
        card = train_on_ranks(plan, spark=spark, overwrite=overwrite, resume=resume, on_epoch=report)
    if card is None or not is_first:
        return None
    url = absolute_url(plan.recipe.model.url)
    model = Model(url, card, is_reused=is_reused)
    on_trained(model)
    return replace(model, logged=log_fit(url, plan.recipe.registry))


def _log_plan(plan: TrainingPlan, *, is_reused: bool, resume: bool) -> None:
    """Logs the selection of rows, and warns of classes without rows, and of a checkpoint that is not used."""
    if selection := describe_selection(plan.manifest):
        _logger.info("%s", selection)
    for note in notes_on_rows(plan.manifest.rows, plan.manifest.classes):
        _logger.warning("%s", note)
    if not is_reused and not resume and has_checkpoint(plan.recipe.model.url):
        _logger.warning(
            "an interrupted training has left a checkpoint, but this one starts anew; `resume=True` (--resume) resumes it."
        )
