"""Training on all its ranks: in this process, as one of the ranks of horovodrun, or as the tasks of a Spark job."""

import os
import signal
from functools import partial
from typing import TYPE_CHECKING

from featurize.errors import JobError, UsageError
from finetune.models.folder import ModelCard, read_model_card
from finetune.training.loop import EpochReport
from finetune.training.plan import TrainingPlan
from finetune.training.train import train

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def train_on_ranks(
    plan: TrainingPlan,
    *,
    spark: "SparkSession | None" = None,
    overwrite: bool = False,
    resume: bool = False,
    on_epoch: EpochReport | None = None,
) -> ModelCard | None:
    """Trains the model of `plan` on `plan.ranks` ranks and publishes it.

    Under horovodrun this process is one of the ranks. Otherwise one rank trains in this process, and several train as tasks of a
    Spark job that run at the same time. SIGTERM ends a training after the current epoch, with its checkpoint written.

    Args:
        plan: made by `plan_training` with the number of ranks, which under horovodrun is `launched_ranks()`.
        spark: the session whose free slots several ranks take. It is not stopped, and no other jobs of it are touched.
            Default: the active session, or else one that is made for the training and stopped after it.
        overwrite: replaces another model at `model.url`.
        resume: resumes from the checkpoint, if this training has left one.
        on_epoch: called in this process after each epoch with its entry in the history; under horovodrun on rank 0 alone.

    Returns:
        The card of the published model; None on the ranks of horovodrun other than rank 0.

    Raises:
        UsageError: the session has fewer slots than there are ranks, or another model is at `model.url`.
        JobError: the training failed or was asked to stop, or a rank died, stalled or did not start; the message names the rank.
    """
    launched = launched_ranks()
    if launched is not None and launched != plan.ranks:
        raise UsageError(f"`ranks` must be {launched}, as horovodrun has started that many. Got {plan.ranks}.")
    train_here = partial(_train_as_rank, plan, overwrite=overwrite, resume=resume)
    if launched is not None or plan.ranks == 1:
        return train_here(distributed=launched is not None, on_epoch=on_epoch)
    from finetune.ranks.spark_ranks import run_on_spark

    run_on_spark(
        partial(_train_on_spark, train_here),
        plan.ranks,
        spark=spark,
        timeout_s=plan.recipe.training.timeout_s,
        on_told=on_epoch,
    )
    card = read_model_card(plan.recipe.model.url)
    if card is None:
        raise JobError(f"{plan.recipe.model.url} has no model, although the ranks have ended without an error.")
    return card


def launched_ranks() -> int | None:
    """The number of ranks that horovodrun has started, of which this process is one; None if it has not."""
    from finetune.ranks.horovod_ranks import launched_by_horovodrun

    return int(os.environ["HOROVOD_SIZE"]) if launched_by_horovodrun() else None


def _train_on_spark(train_here: "partial[ModelCard | None]") -> None:
    """The function of each rank on Spark; the card stays in the model folder."""
    train_here(distributed=True, on_epoch=None, tells_driver=True)


def _train_as_rank(
    plan: TrainingPlan,
    *,
    overwrite: bool,
    resume: bool,
    distributed: bool,
    on_epoch: EpochReport | None,
    tells_driver: bool = False,
) -> ModelCard | None:
    """Trains in this process, as one of the ranks. Rank 0 returns the card; it reports the epochs, here or to the driver."""
    from finetune.ranks.horovod_ranks import open_ranks
    from finetune.ranks.signals import stop_on_signals

    settings = plan.recipe.training
    with (
        open_ranks(distributed=distributed, timeout_s=settings.timeout_s) as ranks,
        stop_on_signals(signal.SIGTERM) as is_asked_to_stop,
    ):
        report = ranks.tell if tells_driver else on_epoch
        return train(
            plan,
            ranks,
            overwrite=overwrite,
            resume=resume,
            on_epoch=report if ranks.rank == 0 else None,
            is_asked_to_stop=is_asked_to_stop,
        )
