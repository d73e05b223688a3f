"""Ways to train a linear classifier: for each, the validation accuracy over time, in a process that has trained before."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.fit_data import load
from featurize.backbones.keras_network import set_threads
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.training_section import TrainingSettings

Curve = list[tuple[float, float]]
"""Seconds since training began, and the validation accuracy at that time."""
_SPARK_MEMORY = "6g"


def train_firn(task: dict[str, Any], *, threads: int) -> Curve | None:
    """`training.loop.fit` on arrays in memory, on the current ranks, which share the batch. None on ranks other than 0."""
    from finetune.ranks.horovod_ranks import launched_by_horovodrun, open_ranks
    from finetune.rows.loader import MemoryData
    from finetune.training.loop import fit

    with open_ranks(distributed=launched_by_horovodrun()) as ranks:
        set_threads(threads)
        train, validation = (MemoryData(load(task["folder"], split).as_split()) for split in ("train", "validation"))
        training = _training(task, ranks=ranks.size)
        curve: Curve = []
        for settings in (training.model_copy(update={"epochs": 1}), training):  # the first to warm up
            model = _model(task)
            curve, started = [], perf_counter()

            def note(entry: dict[str, float], curve: Curve = curve, started: float = started) -> None:
                curve.append((perf_counter() - started, entry["validation_accuracy"]))

            fit(model, train, validation, settings, ranks=ranks, on_epoch=note)
        return curve if ranks.rank == 0 else None


def train_keras(task: dict[str, Any], *, threads: int) -> Curve:
    """`keras.Model.fit` on arrays in memory: the same model, optimizer, batch size and penalty."""
    set_threads(threads)
    import keras

    from finetune.networks.build import logits_of
    from finetune.training.optimizers import make_optimizer

    train, validation = (load(task["folder"], split) for split in ("train", "validation"))
    training = _training(task)
    steps = training.epochs * -(-len(train.labels) // training.batch_size)
    curve: Curve = []
    for epochs in (1, training.epochs):  # the first to warm up
        model = logits_of(_model(task))
        for kernel in (variable for variable in model.trainable_variables if len(variable.shape) > 1):
            kernel.regularizer = keras.regularizers.L2(training.l2) if training.l2 else None
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(make_optimizer(training, steps=steps), loss, metrics=["accuracy"])
        curve, started = [], perf_counter()

        def note(epoch: int, logs: dict[str, float], curve: Curve = curve, started: float = started) -> None:
            curve.append((perf_counter() - started, logs["val_accuracy"]))

        model.fit(
            train.features,
            train.labels,
            batch_size=training.batch_size,
            epochs=epochs,
            validation_data=(validation.features, validation.labels),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=note)],
            verbose=0,
        )
    return curve


def train_scikit_learn(task: dict[str, Any]) -> Curve:
    """`LogisticRegression` by L-BFGS, stopped after more and more iterations: each point is a separate training."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    train, validation = (load(task["folder"], split) for split in ("train", "validation"))
    warnings.simplefilter("ignore", ConvergenceWarning)
    LogisticRegression(C=task["C"], max_iter=1).fit(train.features, train.labels)  # warm
    curve: Curve = []
    for iterations in task["iterations"]:
        started = perf_counter()
        model = LogisticRegression(C=task["C"], max_iter=iterations).fit(train.features, train.labels)
        curve.append((perf_counter() - started, float(model.score(validation.features, validation.labels))))
    return curve


def train_mllib(task: dict[str, Any]) -> Curve:
    """Spark MLlib's `LogisticRegression` on a DataFrame cached in memory, like scikit-learn's, up to the target accuracy.

    It has the best conditions: Java's vector instructions, all cores in one session, and only `fit` is timed.
    """
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.functions import array_to_vector

    validation = load(task["folder"], "validation")
    strength = 1 / (task["C"] * task["rows"]["train"])  # MLlib's mean loss is scikit-learn's sum over C and rows
    curve: Curve = []
    for session in _spark():
        frame = session.read.parquet(str(Path(task["folder"], "train.parquet")))
        frame = frame.select(array_to_vector(frame["features"]).alias("features"), "label")
        frame = frame.repartition(session.sparkContext.defaultParallelism).cache()
        frame.count()
        regression = LogisticRegression(family="multinomial", regParam=strength, tol=1e-6)
        regression.setMaxIter(1).fit(frame)  # warm
        for iterations in task["iterations"]:
            started = perf_counter()
            model = regression.setMaxIter(iterations).fit(frame)
            seconds = perf_counter() - started
            logits = validation.features @ model.coefficientMatrix.toArray().T + model.interceptVector.toArray()
            curve.append((seconds, float(np.mean(logits.argmax(1) == validation.labels))))
            if curve[-1][1] >= task["target"]:
                break
    return curve


def _spark() -> Iterator[Any]:
    """A session on all cores, stopped afterwards."""
    from pyspark.sql import SparkSession

    from featurize.java import find_java

    find_java()
    builder = SparkSession.builder.master("local[*]").config("spark.driver.memory", _SPARK_MEMORY)
    builder = builder.config("spark.driver.extraJavaOptions", "--add-modules=jdk.incubator.vector")
    session = builder.config("spark.ui.enabled", "false").config("spark.driver.host", "127.0.0.1").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


def _training(task: dict[str, Any], *, ranks: int = 1) -> TrainingSettings:
    settings = TrainingSettings(**task["training"])
    return settings.model_copy(update={"batch_size": settings.batch_size // ranks})


def _model(task: dict[str, Any]) -> Any:
    from finetune.networks.build import build_model

    return build_model(
        ModelSettings(name="softmax_head", url="nowhere"),
        feature_shape=[task["feature_dim"]],
        feature_dtype="float32",
        n_classes=task["n_classes"],
        seed=TrainingSettings(**task["training"]).seed,
    )
