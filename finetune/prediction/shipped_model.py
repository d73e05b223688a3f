"""A model on Spark workers: its network and backbone are handed to every executor and loaded once per worker process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyspark import SparkFiles
from pyspark.sql import SparkSession

from featurize.backbones.spec import BackboneSpec
from featurize.building.shipped_backbone import ShippedBackbone, ship_backbone, shipping_folder
from featurize.building.starting_session import StartingSession, ready_session
from featurize.building.worker import use_task_resources
from featurize.digests import sha256_file
from featurize.errors import JobError
from featurize.timings import Timings
from finetune.drift.projection import Projection, embed, embedding_model
from finetune.models.backbone import prepare_model_backbone, rows_at_a_time
from finetune.models.folder import ModelCard, copy_network, load_network
from finetune.networks.forward import predict_probabilities
from finetune.prediction.answers import Threshold

if TYPE_CHECKING:
    import keras

Probabilities = Callable[[NDArray[Any]], NDArray[np.float32]]
Projected = Callable[[NDArray[Any]], tuple[NDArray[np.float32], NDArray[np.float32] | None]]
_MOST_NETWORKS = 4  # heads are small, and one query may compare a champion with a challenger
_networks: dict[str, "keras.Model"] = {}  # by SHA-256; kept by this worker process from task to task
_embedding: dict[str, "keras.Model"] = {}  # the same networks with the embedding as a second output


@dataclass(frozen=True)
class ShippedModel:
    """The description of a model for workers; it travels inside the function that Spark ships.

    Attributes:
        classes: The class labels, in the order of `label_index`.
        backbone: What images pass through before the network; for features only its description of their shape is used.
        network_file: Name under which Spark distributes the network file.
        network_sha256: SHA-256 of that file.
        takes_images: Whether the inputs are images; otherwise they are features.
        threshold: The threshold below which the model gives no label; None: every image gets one.
        projection: What is kept of an image with its prediction, to see drift; None: nothing.
    """

    model_id: str
    classes: tuple[str, ...]
    backbone: ShippedBackbone
    network_file: str
    network_sha256: str
    takes_images: bool
    threshold: Threshold | None = None
    projection: Projection | None = None

    def predictor(self, timings: Timings) -> Probabilities:
        """A function from a batch of pixels or features to ``float32 (n_images, n_classes)``; loads the model on first use."""
        if not self.takes_images:
            network = self._network(timings)
            return lambda features: predict_probabilities(network, features)
        forward, network = self.backbone.forward(timings), self._network(timings)
        return lambda pixels: predict_probabilities(network, forward(pixels))

    def projecting_predictor(self, timings: Timings) -> Projected:
        """Like `predictor`, and returns projections, ``float32 (n_images, size)`` or None, from the same pass."""
        projection = self.projection
        if projection is None:
            predict = self.predictor(timings)
            return lambda inputs: (predict(inputs), None)
        forward = self.backbone.forward(timings) if self.takes_images else None
        model = self._embedding_model(timings)

        def predict_and_project(inputs: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            probabilities, embeddings = embed(model, inputs if forward is None else forward(inputs))
            return probabilities, projection.apply(embeddings)

        return predict_and_project

    def _embedding_model(self, timings: Timings) -> "keras.Model":
        network = self._network(timings)
        if self.network_sha256 not in _embedding:
            _embedding[self.network_sha256] = embedding_model(network)
        return _embedding[self.network_sha256]

    def _network(self, timings: Timings) -> "keras.Model":
        if self.network_sha256 not in _networks:
            with timings.measure("startup"):
                while len(_networks) >= _MOST_NETWORKS:
                    oldest = next(iter(_networks))
                    del _networks[oldest]
                    _embedding.pop(oldest, None)
                use_task_resources()
                path = Path(SparkFiles.get(self.network_file))
                if sha256_file(path) != self.network_sha256:
                    raise JobError(f"{path} is not the network of the model {self.model_id[:16]}: its SHA-256 differs.")
                _networks[self.network_sha256] = load_network(path, origin=self.network_file)
        return _networks[self.network_sha256]


def ship_model(
    spark: SparkSession | StartingSession,
    url: str,
    card: ModelCard,
    *,
    takes_images: bool,
    threshold: Threshold | None = None,
    projection: Projection | None = None,
) -> ShippedModel:
    """Hands the model at `url` to every executor.

    Args:
        takes_images: Whether the model labels images; otherwise it labels ready-made features.
        projection: The projection of the model's `drift.reference.Reference`; None: predictions keep no projections.

    Raises:
        UsageError: Its backbone cannot be rebuilt identically.
        JobError: The network is missing or damaged.
    """
    folder = shipping_folder().name
    if takes_images:
        backbone = prepare_model_backbone(card, folder)
        shipped = ship_backbone(ready_session(spark), backbone)
    else:
        spec = BackboneSpec.from_dict(card.features.backbone)
        shipped = ShippedBackbone(spec, file=None, sha256=None, batch_size=rows_at_a_time(card.features))
    network = copy_network(url, card, folder)
    ready_session(spark).sparkContext.addFile(str(network))
    return ShippedModel(
        model_id=card.model_id,
        classes=tuple(card.classes),
        backbone=shipped,
        network_file=network.name,
        network_sha256=card.network_sha256,
        takes_images=takes_images,
        threshold=threshold,
        projection=projection,
    )
