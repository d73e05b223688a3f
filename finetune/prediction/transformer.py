"""A model as a stage in a Spark ML pipeline."""

from typing import TYPE_CHECKING, Any, Self, cast

from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsReader, DefaultParamsWritable

from featurize import storage
from featurize.connectors.zookeeper import is_node
from featurize.errors import UsageError
from finetune.prediction.udf import Kind, make_classifier

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


_RENAMED = {"precision": "target_precision"}  # parameters by their names in Firn 0.1


class _Reader(DefaultParamsReader[Any]):
    """Loads a saved stage whose parameters may have the names that they had in Firn 0.1."""

    def load(self, path: str) -> Any:
        """The stage that was saved at `path`.

        Raises:
            UsageError: Its model is on a host that only the saved stage names.
        """
        metadata = DefaultParamsReader.loadMetadata(path, self.sc)
        for kind in ("paramMap", "defaultParamMap"):
            metadata[kind] = {_RENAMED.get(name, name): value for name, value in metadata[kind].items()}
        self._check_model(str(metadata["paramMap"].get("model", "")), path)
        stage = self.cls()
        stage._resetUid(metadata["uid"])  # type: ignore[attr-defined]
        DefaultParamsReader.getAndSetParams(stage, metadata)
        return stage

    def _check_model(self, model: str, path: str) -> None:
        if "/" not in model:
            return  # of the registry that the caller has
        named = model if is_node(model) else storage.absolute_url(model)
        own = (storage.absolute_url(path), str(self.sc._jsc.hadoopConfiguration().get("fs.defaultFS")))
        if not any(storage.may_be_named(named, place) for place in own):
            raise UsageError(
                f"the pipeline at {path} names the model {model!r}, on a host that only the pipeline names; it is not "
                f"connected to. Allow it with the environment variable FIRN_ALLOW_URLS={model}."
            )


class ImageClassifier(Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable[Any], DefaultParamsWritable):
    """Adds a model's answers for a column of images or features, as a struct; see `udf.register`.

    A saved pipeline stores the model's name: with ``name@alias``, a loaded one uses the model that has the alias at that time.

    Args:
        model: A folder, the id of a run, ``name@alias``, or a node of ZooKeeper, ``zk://host:port/path``.
        inputCol: Column with the bytes of image files, or with features.
        outputCol: Name of the struct column to add.
        of: "images" or "features".
        target_precision: The required share of right labels among those given, in (0, 1]; 0 gives every image a label.
    """

    model = Param(
        Params._dummy(),
        "model",
        "a folder, the id of a run, name@alias, or a node of ZooKeeper",
        TypeConverters.toString,
    )
    of: "Param[str]" = Param(Params._dummy(), "of", "images or features", TypeConverters.toString)
    target_precision = Param(
        Params._dummy(),
        "target_precision",
        "the share of right labels to reach; 0: every image gets a label",
        TypeConverters.toFloat,
    )

    @keyword_only
    def __init__(
        self,
        *,
        model: str | None = None,
        inputCol: str = "content",  # noqa: N803 - the names of Spark ML
        outputCol: str = "prediction",  # noqa: N803
        of: str = "images",
        target_precision: float = 0.0,
    ) -> None:
        super().__init__()
        self._setDefault(inputCol="content", outputCol="prediction", of="images", target_precision=0.0)
        self._set(**self._input_kwargs)  # type: ignore[attr-defined]  # set by `keyword_only`

    def setParams(self, **given: Any) -> Self:  # noqa: N802 - the name of Spark ML
        """Sets parameters by name."""
        return self._set(**given)

    @classmethod
    def read(cls) -> "_Reader":
        """What loads a saved stage, one that Firn 0.1 saved too."""
        return _Reader(cls)

    def _transform(self, dataset: "DataFrame") -> "DataFrame":
        if not self.isDefined(self.model):
            raise UsageError("`model` must be set: a folder, the id of a run, name@alias, or zk://host:port/path.")
        classify = make_classifier(
            dataset.sparkSession,
            self.getOrDefault(self.model),
            of=cast("Kind", self.getOrDefault(self.of)),
            target_precision=self.getOrDefault(self.target_precision) or None,
        )
        return dataset.withColumn(self.getOutputCol(), classify(self.getInputCol()))
