"""Out-of-fold probabilities: each row is judged by a head not trained on it, one of five trained on four fifths of the rows."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurize.recipes.model_section import ModelSettings
from featurize.recipes.training_section import TrainingSettings
from finetune.rows.splits import SplitData
from finetune.scores.metrics import IntArray

if TYPE_CHECKING:
    import keras

N_FOLDS = 5
_STEPS = 1000  # approximate number of steps for each head
_BATCHES = (8, 64)  # the smallest and the largest batch
_EPOCHS = (5, 30)  # the fewest and the most: beginning an epoch takes a while, however few rows it has
_SLICE_ROWS = 4096


def out_of_fold_probabilities(
    features: NDArray[Any],
    label_index: IntArray,
    *,
    n_classes: int,
    row_ids: NDArray[np.int64],
    seed: int = 42,
    n_folds: int = N_FOLDS,
    training: TrainingSettings | None = None,
) -> NDArray[np.float32]:
    """The probabilities that a softmax head, trained on the other folds, gives each row, on standardised features.

    The result depends on the rows, not on their order. A fold's training rows are copied, so that the memory in use is twice that
    of `features`.

    Args:
        features: float32 ``(n_rows, feature_dim)``, or uint8 ``(n_rows, height, width, channels)`` for `pixels`.
        label_index: int ``(n_rows,)`` in [0, n_classes).
        n_classes: 2 or more.
        row_ids: int64 ``(n_rows,)``, equal for equal images only; see `assign_folds`.
        seed: Seed of the folds and the training.
        n_folds: 2 or more.
        training: How the heads are trained; default: `default_training`. Its own seed is not used.

    Returns:
        float32 ``(n_rows, n_classes)``, each row summing to 1.

    Raises:
        JobError: Features are not finite.
        ValueError: There are fewer rows than folds.
    """
    if len(label_index) < n_folds:
        raise ValueError(f"there must be at least {n_folds} rows, one for each fold. Got {len(label_index)}.")
    from finetune.networks.forward import predict_probabilities

    training = training or default_training(len(label_index), int(np.prod(features.shape[1:])))
    settings = training.model_copy(update={"seed": seed})
    folds = assign_folds(row_ids, label_index, seed=seed, n_folds=n_folds)
    order = np.lexsort((label_index, row_ids))
    probabilities = np.empty((len(label_index), n_classes), np.float32)
    for fold in range(n_folds):
        others, own = order[folds[order] != fold], order[folds[order] == fold]
        part = SplitData(
            features[others],
            label_index[others].astype(np.int32),
            pa.nulls(len(others), pa.large_string()),
            row_ids[others],
        )
        head = _train_head(part, n_classes, settings)
        for start in range(0, len(own), _SLICE_ROWS):
            rows = own[start : start + _SLICE_ROWS]
            probabilities[rows] = predict_probabilities(head, features[rows])
    return probabilities


def default_training(rows: int, values: int) -> TrainingSettings:
    """The training settings of the heads for `rows` rows of `values` features: 5 to 30 epochs, batches of 8 to 64 rows.

    The penalty was chosen on the 102 classes of `configs/objects_mobilenet.toml`, 1,024 features, with 5 % of the labels changed:
    of 0.001, 0.01 and 0.03, the last classified most rows right by their true labels (0.866; the first 0.826). Without a penalty
    a head memorises the wrong labels. Fewer standardised features make shorter rows and need larger weights: with fewer features,
    the penalty falls and the learning rate rises.
    """
    return TrainingSettings(
        optimizer="adam",
        learning_rate=min(0.01, max(0.001, 1 / values)),
        schedule="cosine",
        l2=0.03 * min(1.0, values / 1024),
        batch_size=_clip(rows * _EPOCHS[1] // _STEPS, _BATCHES),
        epochs=_clip(_STEPS * _BATCHES[1] // max(1, rows), _EPOCHS),
    )


def _clip(value: int, span: tuple[int, int]) -> int:
    return max(span[0], min(value, span[1]))


def assign_folds(
    row_ids: NDArray[np.int64], label_index: IntArray, *, seed: int, n_folds: int = N_FOLDS
) -> NDArray[np.int64]:
    """A fold for each row, by a hash of its id: each class is dealt out evenly, and equal images share a fold.

    Were equal images in two folds, a head would have memorised the label of one and confirm that of the other.

    Args:
        row_ids: int64 ``(n_rows,)``, in any order.
        label_index: int ``(n_rows,)``. An image with several labels is dealt with the rows of the lowest one.
        seed: Seed of the hash.
        n_folds: Number of folds.

    Returns:
        int64 ``(n_rows,)`` in [0, n_folds); with n different images, each fold has n / n_folds rows, rounded up or down.
    """
    ids, places = np.unique(row_ids, return_inverse=True)
    labels = np.full(len(ids), np.iinfo(np.int64).max)
    np.minimum.at(labels, places, label_index)
    order = np.lexsort((ids, _hash(ids, seed), labels))
    folds = np.empty(len(ids), np.int64)
    folds[order] = np.arange(len(ids)) % n_folds
    return folds[places]


def _train_head(data: SplitData, n_classes: int, training: TrainingSettings) -> "keras.Model":
    """A softmax head trained on all rows of `data`, after its last epoch."""
    from finetune.networks.build import build_model
    from finetune.networks.input_statistics import collect_statistics
    from finetune.rows.loader import MemoryData
    from finetune.training.loop import fit

    shape, dtype = data.features.shape[1:], str(data.features.dtype)
    prepared = {"pixels": "standardize"} if dtype == "uint8" else {"standardize": True}
    settings = ModelSettings(url="nowhere", **prepared)
    model = build_model(
        settings,
        feature_shape=shape,
        feature_dtype=dtype,
        n_classes=n_classes,
        seed=training.seed,
        statistics=collect_statistics([data.features], settings),
    )
    none = SplitData(data.features[:0], data.label_index[:0], data.paths[:0], data.row_ids[:0])
    return fit(model, MemoryData(data), MemoryData(none), training).model


def _hash(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A hash of each id together with the seed."""
    import tensorflow as tf

    from finetune.networks.row_random import row_keys

    return np.asarray(row_keys(seed, 0, tf.constant(ids)))
