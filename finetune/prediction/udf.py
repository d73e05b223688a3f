"""A model as a Spark SQL function: `SELECT classify(content) FROM images`."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featurize.building.worker import decoder_pool, worker_threads
from featurize.decoding.decode import DecodeError
from featurize.defaults import DECODE_TIMEOUT_S
from featurize.errors import UsageError
from featurize.map_ahead import map_ahead
from featurize.timings import Timings
from finetune.networks.forward import NOT_FINITE, is_finite
from finetune.prediction.answers import ANSWERS, answers_of
from finetune.prediction.shipped_model import Probabilities, ShippedModel, ship_model
from finetune.prediction.task import features_from
from finetune.prediction.threshold import choose_threshold
from finetune.registry.resolve import read_folder, resolve_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Kind = Literal["images", "features"]
ANSWER_TYPE = (
    "label string, probability float, top_labels array<string>, top_probabilities array<float>, reason string, "
    "model_id string"
)
"""The struct that the function returns; its fields are the columns of predictions."""
_Input = NDArray[Any] | DecodeError
_shipped: dict[tuple[Any, ...], ShippedModel] = {}  # kept by this driver, as a backbone takes seconds to prepare


def register(
    spark: "SparkSession",
    name: str,
    model: str,
    *,
    of: Kind = "images",
    target_precision: float | None = None,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> Callable[..., Any]:
    """Registers a model as a SQL function, as in ``SELECT classify(content).label FROM images``.

    It takes the bytes of an image file (or features, see `of`) and returns a struct, `ANSWER_TYPE`. For an image that cannot be
    read, or for which the model gives NaN, all fields but `reason` and `model_id` are null. An alias is looked up once: register
    again after it has moved.

    Args:
        name: Name of the function.
        model: A folder, the id of a run, ``name@alias``, or a node of ZooKeeper, ``zk://host:port/path``.
        of: "images", or "features": arrays of floats as in feature sets, or the raw bytes of pixels.
        target_precision: The required share of right labels: below the threshold that reaches it on the validation split,
            `label` is null.
        decode_timeout_s: Seconds; an image that takes longer to decode gets no label.

    Returns:
        The function, to be applied to columns.

    Raises:
        UsageError: There is no such model, or its backbone cannot be rebuilt identically.
    """
    function = make_classifier(
        spark, model, of=of, target_precision=target_precision, decode_timeout_s=decode_timeout_s
    )
    registered: Callable[..., Any] = spark.udf.register(name, function)
    return registered


def make_classifier(
    spark: "SparkSession",
    model: str,
    *,
    of: Kind = "images",
    target_precision: float | None = None,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> Any:
    """The function of `register`, not registered under a name: to be applied to columns."""
    from pyspark.sql.pandas.functions import pandas_udf

    if of not in ("images", "features"):
        raise UsageError(f"`of` must be images or features. Got {of!r}.")
    shipped = _ship(spark, model, takes_images=of == "images", target_precision=target_precision)

    def classify(columns: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        return answer_columns(shipped, columns, decode_timeout_s=decode_timeout_s)

    return pandas_udf(classify, ANSWER_TYPE)  # type: ignore[call-overload]


def answer_columns(
    model: ShippedModel, columns: Iterator[pd.Series], *, decode_timeout_s: float
) -> Iterator[pd.DataFrame]:
    """The answers for all values of `columns`, in order; runs on a worker, decodes ahead, computes in the model's batch size."""
    threads = worker_threads()
    inputs = map_ahead(
        _loader(model, threads, decode_timeout_s),
        chain.from_iterable(columns),
        threads=threads,
        ahead=model.backbone.ahead(threads),
    )
    predict: Probabilities | None = None
    while batch := list(islice(inputs, model.backbone.batch_size)):
        usable = [value for value in batch if not isinstance(value, DecodeError)]
        if usable and predict is None:
            predict = model.predictor(Timings())
        found = predict(np.stack(usable)) if usable and predict is not None else np.empty((0, len(model.classes)))
        yield _frame(model, batch, found)


def _loader(model: ShippedModel, threads: int, decode_timeout_s: float) -> Callable[[Any], _Input]:
    """A function that turns the bytes of an image into pixels, or a row into features, or returns why it cannot."""
    decoders = decoder_pool(threads, decode_timeout_s)

    def load(value: Any) -> _Input:
        try:
            if value is None:
                return DecodeError("there is no image" if model.takes_images else "there are no features")
            if not model.takes_images:
                content = (
                    bytes(value) if isinstance(value, bytes | bytearray) else np.asarray(value, np.float32).tobytes()
                )
                return features_from(content, model)
            with decoders.lend() as decoder:
                return model.backbone.decode(bytes(value), decoder).pixels
        except DecodeError as error:
            return error

    return load


def _frame(model: ShippedModel, batch: Sequence[_Input], probabilities: NDArray[Any]) -> pd.DataFrame:
    usable = is_finite(probabilities)
    answers = answers_of(probabilities[usable], model.classes, model.threshold)
    rows, of_image = iter(zip(*(answers[name] for name in ANSWERS), strict=True)), iter(usable.tolist())

    def answer(value: _Input) -> tuple[Any, ...]:
        if isinstance(value, DecodeError):
            return (None, None, None, None, str(value))
        return next(rows) if next(of_image) else (None, None, None, None, NOT_FINITE)

    filled = [answer(value) for value in batch]
    return pd.DataFrame(filled, columns=list(ANSWERS), dtype=object).assign(model_id=model.model_id)


def _ship(spark: "SparkSession", model: str, *, takes_images: bool, target_precision: float | None) -> ShippedModel:
    folder = resolve_model(model)
    card = read_folder(folder)
    key = (spark.sparkContext.applicationId, card.model_id, card.network_sha256, takes_images, target_precision)
    if key not in _shipped:
        wanted = target_precision
        threshold = None if wanted is None else choose_threshold(folder, card, target_precision=wanted)
        _shipped[key] = ship_model(spark, folder, card, takes_images=takes_images, threshold=threshold)
    return _shipped[key]
