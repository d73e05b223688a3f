"""A trained model as MLflow loads it: images in, labels and probabilities out. `registry.pyfunc_saving` writes what it reads.

It decodes in `decoding.decoder_process`, computes features with `backbones.backbone` and predicts as `finetune evaluate` does.
MLflow calls `_load_pyfunc` by its name; nothing is unpickled.
"""

import base64
import binascii
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featurize.backbones.backbone import load_backbone
from featurize.backbones.spec import BackboneSpec
from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import DecoderPool
from featurize.engines.keras_memory import check_keras_memory
from featurize.engines.precision import Forward
from featurize.tables.documents import check_version
from finetune.models.folder import load_model
from finetune.networks.forward import FEATURES_NOT_FINITE, NOT_FINITE, is_finite, predict_probabilities

IMAGE, FEATURES = "image", "features"  # the columns that a model can take; it takes one of them
OUTPUTS = ("label", "probability", "probabilities", "error")
MODEL_FOLDER = "model"
BACKBONE_FOLDER = "backbone"
BACKBONE_CARD = "backbone.json"
SCHEMA_VERSION = 1
"""The schema version of `backbone.json`."""
_BATCH = 32  # images in one forward pass, and decoded at a time
_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Classifier:
    """A model that MLflow has loaded.

    Attributes:
        classes: The class labels, in the order of `label_index`.
        network: The network from features or pixels to probabilities.
        spec: How images are decoded; None where there is no backbone and the model takes only features.
        forward: The function from images to the inputs of `network`; for `pixels` it changes nothing.
        feature_dim: Number of values in a row of features.
        decoders: The processes that decode, which an image may crash. They start with the first images.
    """

    classes: list[str]
    network: Any
    spec: BackboneSpec | None
    forward: Forward | None
    feature_dim: int
    decoders: DecoderPool = field(default_factory=lambda: DecoderPool(_THREADS), repr=False, compare=False)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Labels and probabilities for images or features.

        Args:
            model_input: A DataFrame with the column `image`, the bytes of image files or their base64 text, or with the column
                `features`, lists of numbers.
            params: Unused; MLflow passes it.

        Returns:
            A row for each input row, with its index: `label`; `probability` of that label; `probabilities`, a dict with all
            labels; `error`, empty, or why an image cannot be read or the network gives nothing of use, in which case `label` and
            `probabilities` are empty.

        Raises:
            MlflowException: There is no such column, or features have another length. A server answers with status 400.
            JobError: No decoder process can be started.
        """
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        name, values = _column_of(frame)
        if name == IMAGE and (self.spec is None or self.forward is None):
            raise _wrong_input(
                f"this model takes the column {FEATURES!r}, {self.feature_dim} numbers a row, and no images: it was logged "
                "without the backbone that made its features."
            )
        rows = list(self._of_images(values) if name == IMAGE else self._of_features(values))
        return pd.DataFrame(rows, columns=list(OUTPUTS), index=frame.index)

    def probabilities_of(
        self, images: Sequence[Any], *, read: Callable[[Any], bytes]
    ) -> Iterator[NDArray[np.float32] | DecodeError]:
        """The probabilities of all classes for each image, ``float32 (n_classes,)``, or why the image cannot be read.

        Args:
            images: they are decoded a batch at a time.
            read: gives the bytes of the file of one of them; may raise a `DecodeError`.
        """
        if self.spec is None or self.forward is None:
            return
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(images), _BATCH):
                decoded = list(pool.map(partial(self._decode, read), images[start : start + _BATCH]))
                pixels = [image for image in decoded if not isinstance(image, DecodeError)]
                found = iter(predict_probabilities(self.network, self.forward(np.stack(pixels))) if pixels else ())
                yield from (image if isinstance(image, DecodeError) else next(found) for image in decoded)

    def _of_images(self, contents: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """The rows of the answer for images."""
        for found in self.probabilities_of(contents, read=_bytes_of):
            yield _failed(found) if isinstance(found, DecodeError) else self._answer(found)

    def _decode(self, read: Callable[[Any], bytes], image: Any) -> NDArray[np.uint8] | DecodeError:
        if self.spec is None:
            return DecodeError("there is no backbone")
        try:
            spec, content = self.spec, read(image)
            with self.decoders.lend() as decoder:
                return decoder.decode(content, **spec.decoding)[0]
        except DecodeError as error:
            return error

    def _of_features(self, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """The answer rows for features."""
        if self.spec is not None and self.spec.is_pixels:
            raise _wrong_input(f"this model takes images, in the column {IMAGE!r}.")
        try:
            rows = np.array([np.asarray(value, np.float32).reshape(-1) for value in values], np.float32)
        except (ValueError, TypeError) as error:
            raise _wrong_input(f"{FEATURES!r} must be lists of {self.feature_dim} numbers: {error}.") from error
        if len(rows) and rows.shape[1:] != (self.feature_dim,):
            raise _wrong_input(f"{FEATURES!r} must be lists of {self.feature_dim} numbers. Got {rows.shape[-1]}.")
        if len(rows):
            for row, usable in zip(predict_probabilities(self.network, rows), is_finite(rows), strict=True):
                yield self._answer(row) if usable else _failed(DecodeError(FEATURES_NOT_FINITE))

    def _answer(self, probabilities: NDArray[np.float32]) -> tuple[Any, ...]:
        row = probabilities.astype(float)
        if not np.isfinite(row).all():
            return _failed(DecodeError(NOT_FINITE))
        best = int(row.argmax())
        return self.classes[best], float(row[best]), dict(zip(self.classes, row.tolist(), strict=True)), ""


def backbone_file(spec: BackboneSpec) -> str:
    """The name of the backbone's file in a saved model."""
    return "backbone.keras" if spec.engine == "tensorflow" else "backbone.onnx"


def _load_pyfunc(path: str) -> Classifier:
    """Loads the model whose data are in the local folder `path`; called by MLflow."""
    folder = Path(path)
    network, card = load_model(str(folder / MODEL_FOLDER))
    spec, forward = None, None
    card_file = folder / BACKBONE_FOLDER / BACKBONE_CARD
    if card_file.exists():
        document = json.loads(card_file.read_text(encoding="utf-8"))
        check_version(document, version=SCHEMA_VERSION, origin=str(card_file))
        spec = BackboneSpec.read(document["spec"], origin=str(card_file))
        file = folder / BACKBONE_FOLDER / backbone_file(spec)
        if file.suffix == ".keras" and file.exists():
            check_keras_memory(file)
        forward = load_backbone(spec, file if file.exists() else None, sha256=document["sha256"])
    size = int(np.prod(card.features.feature_shape))
    return Classifier(classes=card.classes, network=network, spec=spec, forward=forward, feature_dim=size)


def _column_of(frame: pd.DataFrame) -> tuple[str, list[Any]]:
    """The column that `frame` has, images or features, and its values."""
    names = [name for name in (IMAGE, FEATURES) if name in frame]
    # MLflow fills an optional column that was not given with missing values; if both are all missing, nothing was given.
    for name in [name for name in names if not frame[name].isna().all()] or names:
        return name, frame[name].tolist()
    raise _wrong_input(
        f"the input must have the column {IMAGE!r}, the bytes of image files or their base64 text, or {FEATURES!r}. "
        f"Got {', '.join(map(str, frame.columns)) or 'no column'}."
    )


def _bytes_of(content: Any) -> bytes:
    if isinstance(content, str):
        try:
            return base64.b64decode(content.partition(",")[2] if content.startswith("data:") else content)
        except (binascii.Error, ValueError) as error:
            raise DecodeError("the text is not base64") from error
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    raise DecodeError("there is no image")


def _failed(error: DecodeError) -> tuple[Any, ...]:
    return "", 0.0, {}, str(error)  # not None, which MLflow's Spark function would turn into the text "None"


def _wrong_input(message: str) -> Exception:
    from mlflow.exceptions import MlflowException

    error: Exception = MlflowException.invalid_parameter_value(message)
    return error
