"""A model as workers have it: its network and its backbone handed to every executor, and loaded once per worker process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyspark import SparkFiles
from pyspark.sql import SparkSession

from featurize.backbones.backbone import BackboneSpec
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
_MOST_NETWORKS = 4  # heads are small, and a query may compare champion and challenger
_networks: dict[str, "keras.Model"] = {}  # by digest, of this worker process, kept from task to task
_embedding: dict[str, "keras.Model"] = {}  # the same with embeddings as a second output


@dataclass(frozen=True)
class ShippedModel:
    """What a worker needs of a model: it travels inside the function that Spark ships.

    Attributes:
        classes: the labels, by index.
        backbone: what images go through before; with features, only what it says of their shape counts.
        network_file: the name under which Spark hands out the network.
        network_sha256: of this file.
        takes_images: or else features.
        threshold: below which there is no label.
        projection: what of an image is kept with its prediction; None: nothing.
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
        """From a batch of pixels or features to ``float32 (n_images, n_classes)``; what it needs is loaded if it is not yet."""
        if not self.takes_images:
            network = self._network(timings)
            return lambda features: predict_probabilities(network, features)
        forward, network = self.backbone.forward(timings), self._network(timings)
        return lambda pixels: predict_probabilities(network, forward(pixels))

    def projecting_predictor(self, timings: Timings) -> Projected:
        """As `predictor`, with the projections, ``float32 (n_images, size)`` or None, out of the same pass."""
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
        takes_images: whether it is to label images; or else features that are ready.
        projection: that of the model's `drift_reference.Reference`; None: predictions keep none.

    Raises:
        UsageError: its backbone cannot be had as it was.
        JobError: the network is missing or damaged.
    """
    folder = shipping_folder().name
    if takes_images:
        backbone = prepare_model_backbone(card, folder)
        shipped = ship_backbone(ready_session(spark), backbone.prepared, batch_size=backbone.batch_size)
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
