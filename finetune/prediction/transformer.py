"""A model as a stage in a Spark ML pipeline."""

from typing import TYPE_CHECKING, Any, Self, cast

from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable

from featurize.errors import UsageError
from finetune.prediction.udf import Kind, make_classifier

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class ImageClassifier(Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable[Any], DefaultParamsWritable):
    """Adds a model's answers for a column of images or features, as a struct; see `udf.register`.

    A saved pipeline stores the model's name: with ``name@alias``, a loaded one uses the model that has the alias at that time.

    Args:
        model: A folder, the id of a run, or ``name@alias``.
        inputCol: Column with the bytes of image files, or with features.
        outputCol: Name of the struct column to add.
        of: "images" or "features".
        precision: The target precision of the labels; 0 gives every image a label.
    """

    model = Param(Params._dummy(), "model", "a folder, the id of a run, or name@alias", TypeConverters.toString)
    of: "Param[str]" = Param(Params._dummy(), "of", "images or features", TypeConverters.toString)
    precision = Param(
        Params._dummy(), "precision", "target precision of the labels; 0: all get one", TypeConverters.toFloat
    )

    @keyword_only
    def __init__(
        self,
        *,
        model: str | None = None,
        inputCol: str = "content",  # noqa: N803 - the names of Spark ML
        outputCol: str = "prediction",  # noqa: N803
        of: str = "images",
        precision: float = 0.0,
    ) -> None:
        super().__init__()
        self._setDefault(inputCol="content", outputCol="prediction", of="images", precision=0.0)
        self._set(**self._input_kwargs)  # type: ignore[attr-defined]  # set by `keyword_only`

    def setParams(self, **given: Any) -> Self:  # noqa: N802 - the name of Spark ML
        """Sets parameters by name."""
        return self._set(**given)

    def _transform(self, dataset: "DataFrame") -> "DataFrame":
        if not self.isDefined(self.model):
            raise UsageError("`model` must be set: a folder, the id of a run, or name@alias.")
        classify = make_classifier(
            dataset.sparkSession,
            self.getOrDefault(self.model),
            of=cast("Kind", self.getOrDefault(self.of)),
            precision=self.getOrDefault(self.precision) or None,
        )
        return dataset.withColumn(self.getOutputCol(), classify(self.getInputCol()))
