"""The model of a stream: looked up before every batch, replaced when its name refers to another model, held by a claim."""

from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field

from pyspark.sql import SparkSession

from featurize import storage
from featurize.building.known_shards import IndexFiles
from featurize.connectors.zookeeper import WatchedNode, is_node
from featurize.console import say, warn
from featurize.errors import FirnError, JobError, UsageError
from featurize.recipes.recipe import RegistrySettings
from featurize.sources.listing import ImageSource
from featurize.storage.claims import Claim, claim_output
from featurize.tables.manifests import utc_now
from finetune.drift.reference import Reference
from finetune.drift.window import images_needed, too_small
from finetune.prediction.predict import PredictionPlan, planned_reference, ship_planned
from finetune.prediction.shipped_model import ShippedModel
from finetune.registry.client import all_experiments, find_run, open_registry, registry_at, registry_errors
from finetune.registry.resolve import is_folder, read_folder, resolve_held, resolve_model
from finetune.streams.checkpoint import Checkpoint, Pin
from finetune.streams.drift_windows import StreamDrift, WindowSettings


@dataclass(frozen=True)
class ModelInUse:
    """The model on the workers, and the claim on its predictions.

    Attributes:
        drift: The windows that are tested for drift; None: none.
        files_read: Index files of the predictions read so far. As nobody else writes there, a batch reads only those that the
            last batch wrote.
    """

    plan: PredictionPlan
    shipped: ShippedModel
    claim: Claim
    held: ExitStack
    drift: StreamDrift | None
    files_read: IndexFiles = field(default_factory=dict)

    @property
    def model_id(self) -> str:
        """The model's id."""
        return self.plan.card.model_id


class StreamModels:
    """Decides which model labels a batch.

    The claim on a model's predictions is held from the model's first batch here to its last: a second stream with the same model
    is refused, and so is `finetune predict` with it.

    A model that is named by a node of ZooKeeper is followed by a watch: its node is asked for nothing when a batch begins.

    Args:
        first: The model as found when the stream was planned; its source has no images.
        windows: The windows that are tested for drift; None: none.

    Raises:
        UsageError: Windows of the first model cannot be tested, or the model cannot be used.
    """

    def __init__(
        self, spark: SparkSession, first: PredictionPlan, checkpoint: Checkpoint, windows: WindowSettings | None
    ) -> None:
        self._spark, self._checkpoint, self._windows = spark, checkpoint, windows
        self._name, self._source = first.name, first.source
        self._output, self._target_precision = first.output, first.target_precision
        self._told: str | None = None
        self._current = self._take(first, is_first=True)
        self._node = WatchedNode(first.name) if is_node(first.name) else None

    def close(self) -> None:
        """Releases the claim, and ends the session with ZooKeeper."""
        self._current.held.close()
        if self._node is not None:
            self._node.close()

    def for_batch(self, batch_id: int, query: str) -> ModelInUse:
        """The model of a batch: the one recorded for it before a kill, or else the one that the name refers to now.

        It is recorded: from here on no other model labels this batch.

        Raises:
            FirnError: The batch was begun with a model that is no longer available, or another driver has finished it.
        """
        pin = self._checkpoint.read_pin(batch_id, query)
        if pin is None:
            self._follow()
            plan = self._current.plan
            folder = storage.absolute_url(plan.folder)  # another driver may finish the batch from another folder
            pin = Pin(query=query, model_id=self._current.model_id, name=plan.name, url=folder, pinned_at=utc_now())
            pin = self._checkpoint.write_pin(batch_id, pin)
        self._checkpoint.check_unfinished(batch_id)
        if pin.model_id != self._current.model_id:
            folder = _folder_of(pin, self._checkpoint.pin_url(batch_id))
            say(f"batch {batch_id} was begun with the model {pin.model_id[:16]} and finishes with it.")
            self._exchange(_plan_of(pin.name, folder, self._source, self._output, self._target_precision))
        return self._current

    def _follow(self) -> None:
        """Replaces the model if its name refers to another one now; if that fails, the old model stays, with a warning."""
        before = self._current.model_id
        try:
            folder = resolve_model(self._name) if self._node is None else resolve_held(self._node.text(), self._name)
            plan = _plan_of(self._name, folder, self._source, self._output, self._target_precision)
            if plan.card.model_id == before:
                self._told = None
                return
            self._exchange(plan)
        except (FirnError, OSError) as error:  # a fault of the registry or the new model must not stop the labelling
            if str(error) != self._told:
                warn(f"the model {before[:16]} continues to label: {error}")
            self._told = str(error)
            return
        self._told = None
        say(
            f"{self._name} is now the model {self._current.model_id[:16]}; it labels from here on, in place of {before[:16]}."
        )

    def _exchange(self, plan: PredictionPlan) -> None:
        taken = self._take(plan, is_first=False)
        self._current.held.close()
        self._current = taken

    def _take(self, plan: PredictionPlan, *, is_first: bool) -> ModelInUse:
        """Claims the predictions of a model and hands the model to the workers."""
        with ExitStack() as stack:
            stack.enter_context(storage.no_empty_folder(plan.url))
            claim = stack.enter_context(claim_output(plan.url))
            reference = stack.enter_context(planned_reference(plan))
            if isinstance(reference, str):
                warn(f"drift of features will not be detected: {reference}")
            shipped = ship_planned(self._spark, plan, reference=reference)
            drift = None if self._windows is None else _drift_of(plan, reference, self._windows, is_first=is_first)
            return ModelInUse(plan, shipped, claim, stack.pop_all(), drift)


def _drift_of(
    plan: PredictionPlan, reference: Reference | str, settings: WindowSettings, *, is_first: bool
) -> StreamDrift | None:
    """The windows of a model; None, with a warning, where those of a later model cannot be tested: it labels all the same.

    Raises:
        FirnError: Those of the first model cannot be tested.
    """
    try:
        if isinstance(reference, str):
            raise UsageError(
                f"drift windows (--drift-window) cannot be tested, as {plan.name} has no reference: {reference}"
            )
        drift = StreamDrift(plan.output, plan.card.model_id, reference, settings)
    except (FirnError, OSError) as error:
        if is_first:
            raise
        warn(f"images labelled by {plan.card.model_id[:16]} are not tested for drift: {error}")
        return None
    for line in too_small(images_needed(reference, false_alarm_rate=settings.false_alarm_rate), settings.images):
        warn(f"drift of {line}")
    return drift


def plan_labelling(name: str, source: ImageSource, output: str, target_precision: float | None) -> PredictionPlan:
    """The plan of `finetune predict` for a source whose images are not listed yet.

    Raises:
        UsageError: There is no such model.
    """
    return _plan_of(name, resolve_model(name), source, output, target_precision)


def _plan_of(
    name: str, folder: str, source: ImageSource, output: str, target_precision: float | None
) -> PredictionPlan:
    return PredictionPlan(name, folder, read_folder(folder), source, True, output, target_precision)


def _folder_of(pin: Pin, pin_url: str) -> str:
    """The folder of the model that a batch was begun with, or of the registry's copy of it.

    Raises:
        JobError: It is gone.
    """
    try:
        if read_folder(pin.url).model_id == pin.model_id:
            return pin.url
    except FirnError:  # gone or damaged: the registry may have a copy
        pass
    if not is_folder(pin.name):
        # A node is not asked, as it may name another model now; it may have named a folder, where there is no registry.
        with suppress(UsageError) if is_node(pin.name) else nullcontext():
            settings = registry_at(RegistrySettings())
            client = open_registry(str(settings.url))
            with registry_errors(str(settings.url)):
                run = find_run(client, list(all_experiments(client)), pin.model_id)
            if run is not None:
                return resolve_model(str(run.info.run_id))
    raise JobError(
        f"the batch of {pin_url} was begun with the model {pin.model_id[:16]}, which is no longer in {pin.url}. Put it back; or "
        "remove that file, and two models may label images of this batch."
    )
