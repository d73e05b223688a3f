"""`predict`: labels for images or features, in this process, in Spark, or as a published table."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from numpy.typing import NDArray

from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.errors import UsageError
from finetune.api.model import Model, as_model
from finetune.api.names import HasUrl, folder_of, name_of, url_of
from finetune.api.tables import Summarised, Summary

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from finetune.prediction.answers import Threshold
    from finetune.prediction.predict import Predicted, PredictionPlan
    from finetune.prediction.udf import Kind

ANSWER_COLUMN = "prediction"
"""The column that a Spark DataFrame gets: a struct with `label`, `probability` and more (`prediction.udf.ANSWER_TYPE`)."""


@dataclass(frozen=True, repr=False, eq=False)
class PredictionTable(Summarised):
    """Published predictions of one model. Its `repr` is a table, in a notebook too.

    Attributes:
        plan: what was labelled, by which model, and where the labels went.
        predicted: what was done, and the views on the predictions.
    """

    plan: "PredictionPlan"
    predicted: "Predicted"

    @property
    def url(self) -> str:
        """The URL of the predictions of all models, as `check_drift` and `featurize.register_views` take it."""
        return self.plan.output

    @property
    def rows(self) -> int:
        """The number of images that this model has labelled there."""
        return self.predicted.result.manifest.row_count

    @property
    def threshold(self) -> "Threshold | None":
        """The probability below which an image gets no label; None where every image gets one."""
        return self.predicted.threshold

    def to_pandas(self) -> "pd.DataFrame":
        """The predictions of this model, a row for each image: `path`, `label`, `probability`, `top_labels`, and more."""
        import pyarrow as pa

        from featurize import storage
        from featurize.tables.row_groups import open_parquet

        tables = []
        for file in self.predicted.result.manifest.files:
            with open_parquet(storage.join_url(self.plan.url, file.path)) as opened:
                tables.append(opened.read())
        frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return frame

    def _summary(self) -> Summary:
        result, threshold = self.predicted.result, self.threshold
        views = self.predicted.views
        facts = [
            ("model", f"{self.plan.name}, {self.plan.card.model_id[:16]}"),
            ("images", f"{self.rows:,}; {result.added:,} of them new"),
            ("rejected", f"{result.manifest.reject_count:,}"),
        ]
        facts += [] if threshold is None else [("threshold", f"{threshold.threshold:.4f}")]
        facts += [] if views is None else [("views", ", ".join(views.views.by_name()))]
        return Summary(f"Predictions at {self.url}", facts)


@overload
def predict(
    model: Model | str | Path,
    images: "list[str] | list[Path] | list[bytes] | list[str | Path | bytes] | NDArray[Any] | pd.DataFrame",
    *,
    target_precision: float | None = None,
) -> "pd.DataFrame": ...
@overload
def predict(
    model: Model | str | Path,
    images: "DataFrame",
    *,
    column: str | None = None,
    target_precision: float | None = None,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> "DataFrame": ...
@overload
def predict(
    model: Model | str | Path,
    images: str | Path | HasUrl | None = None,
    *,
    features: str | Path | HasUrl | None = None,
    output: str | Path,
    spark: "SparkSession | None" = None,
    target_precision: float | None = None,
    follow_links: bool = False,
    max_reject_fraction: float = MAX_REJECT_FRACTION,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> PredictionTable: ...
def predict(
    model: Model | str | Path,
    images: Any = None,
    *,
    features: str | Path | HasUrl | None = None,
    output: str | Path | None = None,
    column: str | None = None,
    spark: "SparkSession | None" = None,
    target_precision: float | None = None,
    follow_links: bool = False,
    max_reject_fraction: float = MAX_REJECT_FRACTION,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> Any:
    """Labels images, or features made before. What is returned depends on the kind of input.

    - A list of paths or of the bytes of image files, a NumPy array of features ``(n_images, *feature_shape)``, or a pandas
      frame with a column `features`, `content` (bytes) or `path`: labelled in this process, without Spark. Returns a pandas
      frame with a row for each: `label`, `probability`, `top_labels`, `top_probabilities`, `reason` and `error`; of a list of
      paths also `path`. An image that cannot be read has no label, and `error` says why.
    - A Spark DataFrame with a column `features` or `content`: returns it with the struct `prediction`.
    - The URL of a folder, an images table or a data set card, or `features`, with `output`: a published table, as
      `finetune predict` makes it. Called again, it adds what is missing.

    Args:
        model: a `Model`, a folder, the id of a run, ``name@alias``, or a node of ZooKeeper, ``zk://host:port/path``.
        images: see above.
        features: a feature set or its URL, in place of images; with `output`.
        output: the URL of the predictions; several models may share it.
        column: the column of a Spark DataFrame that has the bytes of images, or features as an array.
        spark: the session that makes a published table; it is not stopped. Default: the active session, or else one made for
            this call.
        target_precision: the share of right labels to reach among those that are given, in (0, 1], judged by the validation
            split; less certain images get no label, and `reason` says so. None: every image gets a label.
        follow_links: whether links that lead out of a folder of images are followed; otherwise they are rejects.
        max_reject_fraction: the share of images that may be unreadable, in [0, 1]; above it no table is published.
        decode_timeout_s: seconds; in Spark an image that takes longer to decode is rejected.

    Raises:
        UsageError: there is no such model, its backbone cannot be loaded as it was, or the input is of another kind.
        JobError: the job failed, or another one writes to `output`.
    """
    if output is not None:
        given = {"images": images, "features": features}
        urls = {name: None if value is None else url_of(value) for name, value in given.items()}
        return _publish(
            name_of(model),
            str(output),
            **urls,
            target_precision=target_precision,
            follow_links=follow_links,
            spark=spark,
            max_reject_fraction=max_reject_fraction,
            decode_timeout_s=decode_timeout_s,
        )
    if features is not None or isinstance(images, str | Path):
        raise UsageError(
            "`output` is required to label a folder or a feature set. For single files give a list of paths."
        )
    if _is_spark_frame(images):
        return _with_answers(model, images, column, target_precision, decode_timeout_s)
    from finetune.prediction.local import predict_frame

    return predict_frame(as_model(model).url, images, target_precision=target_precision)


def register(
    spark: "SparkSession",
    name: str,
    model: Model | str | Path,
    *,
    of: "Kind" = "images",
    target_precision: float | None = None,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> Callable[..., Any]:
    """Registers a model as a function of SQL, as in ``SELECT classify(content).label FROM images``.

    Args:
        name: the name of the function in SQL.
        model: a `Model`, a folder, the id of a run, ``name@alias`` or ``zk://host:port/path``, which are looked up once.
        of: what the function takes: "images", the bytes of image files, or "features".
        target_precision: the share of right labels to reach, in (0, 1]; None: every image gets a label.
        decode_timeout_s: seconds; an image that takes longer to decode gets no label.

    Returns:
        The function, for columns.

    Raises:
        UsageError: there is no such model, or its backbone cannot be loaded as it was.
    """
    from finetune.prediction import udf

    return udf.register(
        spark, name, folder_of(model), of=of, target_precision=target_precision, decode_timeout_s=decode_timeout_s
    )


def _publish(
    name: str,
    output: str,
    *,
    spark: "SparkSession | None",
    max_reject_fraction: float,
    decode_timeout_s: float,
    **given: Any,
) -> PredictionTable:
    from featurize.building.starting_session import borrowed_or_starting
    from featurize.progress import shown_in_notebook
    from finetune.prediction.predict import plan_prediction
    from finetune.prediction.predict import predict as label

    plan = plan_prediction(name, output, **given)
    with shown_in_notebook(), borrowed_or_starting(spark, "firn predict", warm_up="tensorflow") as session:
        done = label(session, plan, max_reject_fraction=max_reject_fraction, decode_timeout_s=decode_timeout_s)
    return PredictionTable(plan, done)


def _is_spark_frame(value: Any) -> bool:
    """Whether `value` is a Spark DataFrame; if Spark was never imported, it cannot be one."""
    module = sys.modules.get("pyspark.sql")
    return module is not None and isinstance(value, module.DataFrame)


def _with_answers(
    model: Model | str | Path, frame: "DataFrame", column: str | None, target_precision: float | None, timeout_s: float
) -> "DataFrame":
    from pyspark.sql.types import ArrayType

    from finetune.prediction.udf import make_classifier

    names = ("features", "content") if column is None else (column,)
    found = next((name for name in names if name in frame.columns), None)
    if found is None:
        raise UsageError(
            f"the Spark DataFrame must have the column {' or '.join(names)}. Got {', '.join(frame.columns)}."
        )
    takes_features = found == "features" or isinstance(frame.schema[found].dataType, ArrayType)
    classify = make_classifier(
        frame.sparkSession,
        folder_of(model),
        of="features" if takes_features else "images",
        target_precision=target_precision,
        decode_timeout_s=timeout_s,
    )
    return frame.withColumn(ANSWER_COLUMN, classify(found))
