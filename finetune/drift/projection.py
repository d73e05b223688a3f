"""Projections: a few random Fourier features of a model's view of an image, kept with its prediction to detect drift.

They are computed from the input of the model's last Dense layer (of the head's, where a backbone was unfrozen). Distances between
means of such features approximate the distances that a Gaussian kernel gives.

Sources: A. Rahimi, B. Recht, "Random features for large-scale kernel machines", 2007; pairs of cosine and sine, which have
less variance: D. J. Sutherland, J. Schneider, "On the error of random Fourier features", 2015.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune.networks.build import PROBABILITIES

if TYPE_CHECKING:
    import keras

SIZE = 64
"""Length of a projection: 32 frequencies, 256 bytes a row."""
_ROWS = 4096  # rows in a slice, as in `predict_probabilities`
_PAIRS_OF = 1024  # images whose pairwise distances are computed


@dataclass(frozen=True)
class Projection:
    """The random features of one model.

    Attributes:
        seed: Seed of the frequencies; follows from the model's id.
        size: Length of a projection; even.
        bandwidth: Bandwidth of the Gaussian kernel, in the unit of the embeddings.
    """

    seed: int
    size: int
    bandwidth: float

    def as_dict(self) -> dict[str, Any]:
        """The projection as a JSON-ready dict."""
        return asdict(self)

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Projections, ``float32 (n_images, size)`` with norm 1, of embeddings, ``float32 (n_images, dim)``."""
        phases = embeddings @ (
            _frequencies(self.seed, embeddings.shape[1], self.size // 2) / np.float32(self.bandwidth)
        )
        both = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
        projections: NDArray[np.float32] = both * np.float32(np.sqrt(2 / self.size))
        return projections


def seed_of(model_id: str) -> int:
    """The seed of a model's projection: the first 32 bits of its id."""
    return int(model_id[:8], 16)


def median_distance(embeddings: NDArray[np.float32]) -> float:
    """The bandwidth: the median distance between two of the first 1,024 images; 1 where they are all equal.

    Source: A. Gretton et al., "A kernel two-sample test", 2012, section 8.
    """
    rows = embeddings[:_PAIRS_OF].astype(np.float64)
    squares = (rows**2).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
    found = float(np.median(distances[np.triu_indices(len(rows), 1)])) if len(rows) > 1 else 0.0
    return float(np.sqrt(found)) if found > 0 else 1.0


def embedding_model(model: "keras.Model") -> "keras.Model":
    """`model` with a second output, the input of the layer that computes its logits: one pass gives both.

    Output shape: ``float32 (n_images, n_classes)``, as before, and ``(n_images, dim)``.
    """
    import keras

    made_by, node, _ = model.get_layer(PROBABILITIES).input._keras_history
    # A head within a model has an `input` of its own; the tensors it was called on are kept with the call.
    inputs = made_by._inbound_nodes[node].input_tensors
    flat = [tensor if len(tensor.shape) == 2 else keras.layers.Flatten()(tensor) for tensor in inputs]
    embedding = flat[0] if len(flat) == 1 else keras.layers.Concatenate()(flat)
    return keras.Model(model.input, [model.output, embedding])


def embed(model: "keras.Model", features: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities and embeddings from an `embedding_model`, computed in slices of 4,096 rows."""
    slices = (features[start : start + _ROWS] for start in range(0, len(features), _ROWS))
    parts = [tuple(np.asarray(output) for output in model(part, training=False)) for part in slices]
    if not parts:
        return tuple(np.empty((0, int(output.shape[-1])), np.float32) for output in model.outputs)  # type: ignore[return-value]
    probabilities, embeddings = zip(*parts, strict=True)
    return np.concatenate(probabilities), np.concatenate(embeddings).astype(np.float32, copy=False)


@lru_cache(maxsize=4)
def _frequencies(seed: int, dim: int, count: int) -> NDArray[np.float32]:
    """Standard normal, ``float32 (dim, count)``: equal arguments give equal values in every process and NumPy version.

    NumPy promises this only for RandomState (NEP 19); other generators may change with the version.
    """
    return np.random.RandomState(seed).standard_normal((dim, count)).astype(np.float32)
