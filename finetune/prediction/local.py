"""Labels in this process, without Spark: for a handful of images, or for features that are in memory."""

import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurize import storage
from featurize.backbones.backbone import load_backbone
from featurize.decoding.decode import DecodeError
from featurize.errors import UsageError
from finetune.models.backbone import prepare_model_backbone
from finetune.models.folder import ModelCard, load_model
from finetune.networks.forward import FEATURES_NOT_FINITE, NOT_FINITE, is_finite, predict_probabilities
from finetune.prediction.answers import ANSWERS, Threshold, answers_of
from finetune.prediction.threshold import choose_threshold
from finetune.registry.pyfunc_model import Classifier
from finetune.registry.resolve import read_folder

if TYPE_CHECKING:
    import pandas as pd

_CONTENT_COLUMNS = ("content", "image", "path")
_Answer = NDArray[np.float32] | DecodeError


def predict_frame(url: str, given: Any, *, target_precision: float | None = None) -> "pd.DataFrame":
    """The answers of the model in a folder to a list of images, an array of features, or a pandas frame.

    Args:
        url: the URL of the model's folder.
        given: a list of paths (or URLs) and of bytes of image files; or float32 features, of a model on pixels uint8 images,
            ``(n_images, *feature_shape)``; or a pandas frame with the column `features`, `content`, `image` or `path`.
        target_precision: see `choose_threshold`; None: every image gets a label.

    Returns:
        A row for each image, in its order, with the index of a frame: `path` where images were given by their paths; `label`,
        `probability`, `top_labels`, `top_probabilities` and `reason`, as `answers_of` says; `error`, None or why the image
        cannot be read or the model gives nothing of use, in which case the others are empty.

    Raises:
        UsageError: `given` is of another kind or has another shape, or the model's backbone cannot be loaded as it was.
        JobError: the model is damaged.
    """
    import pandas as pd

    card = read_folder(url)
    threshold = None if target_precision is None else _threshold(url, card.network_sha256, target_precision)
    index = given.index if isinstance(given, pd.DataFrame) else None
    values = _values_of(given)
    if isinstance(values, np.ndarray):
        network = _load(url, card.network_sha256, takes_images=False).network
        values = _check_features(values, card)
        found = zip(predict_probabilities(network, values), is_finite(values), strict=True)
        answers: Iterable[_Answer] = (row if usable else DecodeError(FEATURES_NOT_FINITE) for row, usable in found)
    else:
        answers = _load(url, card.network_sha256, takes_images=True).probabilities_of(values, read=_read_content)
    frame = _frame(list(answers), card, threshold, index)
    if not isinstance(values, np.ndarray) and any(isinstance(value, str | Path) for value in values):
        paths = [str(value) if isinstance(value, str | Path) else None for value in values]
        frame.insert(0, "path", paths)
    return frame


def _values_of(given: Any) -> NDArray[Any] | list[Any]:
    """Features as an array, or images as a list."""
    import pandas as pd

    if isinstance(given, pd.DataFrame):
        if "features" in given:
            return _stack(given["features"].tolist())
        found = next((name for name in _CONTENT_COLUMNS if name in given), None)
        if found is None:
            names = ", ".join(("features", *_CONTENT_COLUMNS))
            raise UsageError(
                f"the frame must have one of the columns {names}. Got {', '.join(map(str, given.columns))}."
            )
        return given[found].tolist()
    if isinstance(given, np.ndarray) and given.dtype != object:
        return given
    if isinstance(given, list | tuple):
        wrong = next((value for value in given if not isinstance(value, str | Path | bytes | bytearray)), None)
        if wrong is None:
            return list(given)
        raise UsageError(f"a list of images must hold paths or bytes. Got {type(wrong).__name__}.")
    raise UsageError(
        "`images` must be a list of paths or bytes, a NumPy array of features, a pandas frame or a Spark DataFrame. "
        f"Got {type(given).__name__}."
    )


def _stack(rows: Sequence[Any]) -> NDArray[Any]:
    try:
        return np.stack([np.asarray(row) for row in rows]) if rows else np.empty(0)
    except ValueError as error:
        raise UsageError("`features` must have one shape in all rows. Got several.") from error


def _check_features(values: NDArray[Any], card: ModelCard) -> NDArray[Any]:
    """`values` as the network takes them."""
    dtype, size = card.features.feature_dtype, int(np.prod(card.features.feature_shape))
    shape = tuple(card.features.feature_shape) if dtype == "uint8" else (size,)
    if not len(values):
        return np.empty((0, *shape), dtype)
    is_right = values.dtype == np.uint8 if dtype == "uint8" else values.dtype.kind in "fiu"
    if values.shape[1:] != shape or not is_right:
        wanted = f"{dtype} (n_images, {', '.join(map(str, shape))})"
        got = f"{values.dtype} {values.shape}"
        raise UsageError(f"`images` as an array must be {wanted}, as this model was trained on. Got {got}.")
    return values.astype(dtype, copy=False)


def _read_content(value: Any) -> bytes:
    """The bytes of an image file.

    Raises:
        DecodeError: it cannot be read.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str | Path):
        raise DecodeError("there is no image")
    try:
        return storage.read_bytes(str(value))
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror or error}") from error


def _frame(
    found: Sequence[_Answer], card: ModelCard, threshold: Threshold | None, index: "pd.Index[Any] | None"
) -> "pd.DataFrame":
    import pandas as pd

    found = [
        row if isinstance(row, DecodeError) or np.isfinite(row).all() else DecodeError(NOT_FINITE) for row in found
    ]
    usable = [row for row in found if not isinstance(row, DecodeError)]
    probabilities = np.stack(usable) if usable else np.empty((0, len(card.classes)), np.float32)
    answers = answers_of(probabilities, card.classes, threshold)
    rows = iter(zip(*(answers[name] for name in ANSWERS), strict=True))
    empty = (None, float("nan"), None, None, None)
    filled = [(*empty, str(row)) if isinstance(row, DecodeError) else (*next(rows), None) for row in found]
    frame = pd.DataFrame(filled, columns=[*ANSWERS, "error"], index=index)
    return frame.astype({"probability": np.float64, "label": object, "reason": object, "error": object})


@lru_cache(maxsize=4)
def _load(url: str, network_sha256: str, *, takes_images: bool) -> Classifier:
    """The model in a folder, kept for the next call; another one by now has another digest."""
    network, card = load_model(url)
    size = int(np.prod(card.features.feature_shape))
    if not takes_images:
        return Classifier(classes=card.classes, network=network, spec=None, forward=None, feature_dim=size)
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        prepared = prepare_model_backbone(card, folder)
        forward = load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)
    return Classifier(classes=card.classes, network=network, spec=prepared.spec, forward=forward, feature_dim=size)


@lru_cache(maxsize=16)
def _threshold(url: str, network_sha256: str, target_precision: float) -> Threshold:
    return choose_threshold(url, read_folder(url), target_precision=target_precision)
