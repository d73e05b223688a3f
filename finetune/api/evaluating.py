"""`evaluate`: how good a model is on one split."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurize.recipes.recipe import RegistrySettings
from finetune.api.model import Model, load_model
from finetune.api.names import HasUrl, url_of
from finetune.api.notebook import displayable
from finetune.api.tables import MOST_ROWS, Summarised, Summary
from finetune.evaluation.evaluate import evaluate_model
from finetune.registry.log_model import LoggedModel, log_evaluation
from finetune.registry.resolve import is_folder, without_node

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_SCORES = ("accuracy", "top5_accuracy", "precision", "recall", "f1", "log_loss")


@dataclass(frozen=True, repr=False, eq=False)
class ModelEvaluation(Summarised):
    """The scores of a model on one split. Its `repr` is a table, in a notebook too.

    Attributes:
        model: the model that was evaluated.
        result: all that was found, as in the file `evaluation-<split>.json`.
        files: URLs of what was written: `evaluation`, `table` (the confusion matrix as CSV) and `plot`.
        logged: where the evaluation was logged; None where there is no registry.
    """

    model: Model
    result: dict[str, Any]
    files: dict[str, str]
    logged: LoggedModel | None = field(default=None)

    @property
    def split(self) -> str:
        """The split that the model was judged by."""
        return str(self.result["split"])

    @property
    def features(self) -> str:
        """The URL of the feature set."""
        return str(self.result["features"])

    @property
    def rows(self) -> int:
        """The number of images in the split."""
        return int(self.result["rows"])

    @property
    def classes(self) -> list[str]:
        """The class labels, in the order of `label_index`."""
        return list(self.result["classes"])

    @property
    def accuracy(self) -> float:
        """The share of images whose most probable class is the true one, in [0, 1]."""
        return float(self.result["accuracy"])

    @property
    def top5_accuracy(self) -> float:
        """The share of images whose true class is among the five most probable, in [0, 1]."""
        return float(self.result["top5_accuracy"])

    @property
    def precision(self) -> float:
        """The mean of the classes' precision, in [0, 1]."""
        return float(self.result["precision"])

    @property
    def recall(self) -> float:
        """The mean of the classes' recall, in [0, 1]."""
        return float(self.result["recall"])

    @property
    def f1(self) -> float:
        """The mean of the classes' F1, in [0, 1]."""
        return float(self.result["f1"])

    @property
    def log_loss(self) -> float:
        """The mean negative log likelihood of the true classes, in nats."""
        return float(self.result["log_loss"])

    @property
    def confusion(self) -> "pd.DataFrame":
        """The confusion matrix: a row for each true class, a column for each predicted one, numbers of images."""
        import pandas as pd

        index, columns = pd.Index(self.classes, name="true"), pd.Index(self.classes, name="predicted")
        return pd.DataFrame(np.array(self.result["confusion_matrix"], np.int64), index=index, columns=columns)

    @property
    def per_class(self) -> "pd.DataFrame":
        """A row for each class, by its label: `precision`, `recall` and `f1` in [0, 1], and `support`, its number of images."""
        import pandas as pd

        return pd.DataFrame(self.result["per_class"]).set_index("class")

    @property
    def most_confused(self) -> "pd.DataFrame":
        """Which classes are taken for which others, most frequent first: `true`, `predicted`, `count`, `fraction` of `true`."""
        import pandas as pd

        return pd.DataFrame(self.result["most_confused"], columns=["true", "predicted", "count", "fraction"])

    def plot(self) -> "Figure":
        """The confusion matrix as a figure."""
        from finetune.scores.figures import plot_confusion_matrix

        title = f"{self.model.name} on {self.split}"
        return displayable(plot_confusion_matrix(self.confusion.to_numpy(), self.classes, title=title))

    def _summary(self) -> Summary:
        left_out = self.result["left_out"]
        facts = [(name.replace("_", " "), f"{self.result[name]:.4f}") for name in _SCORES]
        facts += [("images", f"{self.rows:,}" + (f", {left_out:,} left out by `where`" if left_out else ""))]
        confused = self.result["most_confused"]
        rows = [
            (pair["true"], pair["predicted"], f"{pair['count']:,}", f"{pair['fraction']:.0%}")
            for pair in confused[:MOST_ROWS]
        ]
        columns = ("true", "predicted", "images", "of the class") if rows else ()
        title = f"Evaluation of {self.model.url} on {self.split}"
        return Summary(title, facts, columns, rows, numbers=(2, 3), more=max(0, len(confused) - MOST_ROWS))


def evaluate(
    model: Model | str | Path,
    features: HasUrl | str | Path | None = None,
    *,
    split: str = "test",
    output: str | Path | None = None,
    all_rows: bool = False,
    registry: str | None = None,
    on_result: Callable[[ModelEvaluation], None] = lambda result: None,
) -> ModelEvaluation:
    """Evaluates a model on one split, and writes scores, confusion matrix and its plot beside the model.

    Args:
        model: a `Model`, a folder, the id of a run, ``name@alias``, or a node of ZooKeeper, ``zk://host:port/path``.
        features: a feature set or its URL; default: the one that the model was trained on.
        split: ``train``, ``validation`` or ``test``.
        output: the folder for the three files; default: the model's.
        all_rows: evaluates on all rows; by default on those that the model's `where` selects, if it has one.
        registry: the MLflow tracking URI of the registry to log to, where a name is looked up too; default: that of the
            environment, or else `sqlite:///runs/mlflow.db` if the model was found or logged there.
        on_result: called with the result before it is logged, so that a registry that fails does not hide it.

    Raises:
        UsageError: there is no such model or feature set, its features are of another backbone, or the split has no rows.
        JobError: files are damaged, or the evaluation could not be logged.
    """
    named_by = model if isinstance(model, Model) else without_node(str(model))
    chosen = named_by if isinstance(named_by, Model) else load_model(named_by, registry=registry)
    is_found = not isinstance(named_by, Model) and not is_folder(named_by)  # in a registry
    url = None if features is None else url_of(features)
    folder = None if output is None else str(output)
    result = evaluate_model(chosen.url, url, split, folder, all_rows=all_rows)
    files = result.pop("files")
    evaluation = ModelEvaluation(chosen, result, files)
    named = RegistrySettings(url=registry) if registry is not None or is_found else None
    on_result(evaluation)
    return replace(evaluation, logged=log_evaluation(chosen.url, {**result, "files": files}, registry=named))
