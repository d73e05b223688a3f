"""Trains heads and ConvNets on Firn's features with exact synchronous averaging, evaluates them, and labels new images.

What a command does, one call does. Everything here is loaded when it is first used, so that ``import finetune`` loads
neither Spark nor TensorFlow:

    import finetune

    model = finetune.fit("flowers.toml", ranks=2, spark=spark)
    model = finetune.load_model("flowers@champion")
    evaluation = model.evaluate(split="test")
    evaluation.confusion, evaluation.plot()
    model.predict(["a.jpg", "b.jpg"])
    model.report("report.html")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurize.errors import FirnError, JobError, UsageError

if TYPE_CHECKING:
    from finetune.api.checking import (
        DataFindings,
        DriftFindings,
        Relabelling,
        check_data,
        check_drift,
        relabel,
    )
    from finetune.api.evaluating import ModelEvaluation, evaluate
    from finetune.api.model import Model, load_model
    from finetune.api.predicting import PredictionTable, predict, register
    from finetune.api.reporting import Report, report
    from finetune.api.sweeping import Sweep, sweep
    from finetune.api.training import fit
    from finetune.prediction.transformer import ImageClassifier

__all__ = [
    "DataFindings",
    "DriftFindings",
    "FirnError",
    "ImageClassifier",
    "JobError",
    "Model",
    "ModelEvaluation",
    "PredictionTable",
    "Relabelling",
    "Report",
    "Sweep",
    "UsageError",
    "check_data",
    "check_drift",
    "evaluate",
    "fit",
    "load_model",
    "predict",
    "register",
    "relabel",
    "report",
    "sweep",
]
_MODULES = {
    "DataFindings": "finetune.api.checking",
    "DriftFindings": "finetune.api.checking",
    "ImageClassifier": "finetune.prediction.transformer",
    "Model": "finetune.api.model",
    "ModelEvaluation": "finetune.api.evaluating",
    "PredictionTable": "finetune.api.predicting",
    "Relabelling": "finetune.api.checking",
    "Report": "finetune.api.reporting",
    "Sweep": "finetune.api.sweeping",
    "check_data": "finetune.api.checking",
    "check_drift": "finetune.api.checking",
    "evaluate": "finetune.api.evaluating",
    "fit": "finetune.api.training",
    "load_model": "finetune.api.model",
    "predict": "finetune.api.predicting",
    "register": "finetune.api.predicting",
    "relabel": "finetune.api.checking",
    "report": "finetune.api.reporting",
    "sweep": "finetune.api.sweeping",
}


def __getattr__(name: str) -> Any:
    """Loads a name of `__all__` when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
