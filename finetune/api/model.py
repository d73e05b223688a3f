"""`Model`, a trained model, and `load_model`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.api.names import HasUrl, folder_of
from finetune.api.tables import Summarised, Summary
from finetune.models.folder import ModelCard
from finetune.registry.resolve import read_folder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from finetune.api.evaluating import ModelEvaluation
    from finetune.api.reporting import Report
    from finetune.registry.log_model import LoggedModel


@dataclass(frozen=True, repr=False)
class Model(Summarised):
    """A trained model. Its `repr` is a table, in a notebook too.

    Attributes:
        url: the folder of the model.
        card: all that is known of it: recipe, classes, scores of each epoch, the feature set it was trained on.
        is_reused: whether `fit` found it trained before with the same settings.
        logged: where `fit` logged it; None where no registry is named.
    """

    url: str
    card: ModelCard
    is_reused: bool = field(default=False, compare=False)
    logged: "LoggedModel | None" = field(default=None, compare=False)

    @property
    def model_id(self) -> str:
        """The digest of everything that could change the model, 64 hexadecimal digits."""
        return self.card.model_id

    @property
    def name(self) -> str:
        """The network's name in the recipe, such as ``softmax_head``."""
        return str(self.card.recipe["model"]["name"])

    @property
    def classes(self) -> list[str]:
        """The class labels, in the order of `label_index`."""
        return list(self.card.classes)

    @property
    def metrics(self) -> dict[str, float]:
        """The scores of the best epoch, such as ``validation_accuracy`` in [0, 1]."""
        return dict(self.card.metrics)

    @property
    def history(self) -> "pd.DataFrame":
        """A row for each epoch, by its number: loss, accuracy, those of validation where there is one, and times in seconds."""
        import pandas as pd

        frame = pd.DataFrame(self.card.history)
        return frame.assign(epoch=frame["epoch"].astype(int)).set_index("epoch")

    def plot(self) -> "Figure":
        """Loss and accuracy by epoch, with the best epoch marked."""
        from finetune.api.notebook import displayable
        from finetune.scores.figures import plot_history

        title = f"{self.name}: training"
        return displayable(plot_history(self.card.history, title=title, best_epoch=self.card.best_epoch))

    def evaluate(self, features: HasUrl | str | Path | None = None, split: str = "test") -> "ModelEvaluation":
        """The scores of this model on a split; see `finetune.evaluate`."""
        from finetune.api.evaluating import evaluate

        return evaluate(self, features, split=split)

    def predict(self, images: Any, **options: Any) -> Any:
        """Labels for images or features; see `finetune.predict`, which also names the options."""
        from finetune.api.predicting import predict

        return predict(self, images, **options)

    def report(self, output: str | Path | None = None, **options: Any) -> "Report":
        """The model on one page; see `finetune.report`, which also names the options."""
        from finetune.api.reporting import report

        return report(self, output, **options)

    def _summary(self) -> Summary:
        card = self.card
        ranks = "1 rank" if card.ranks == 1 else f"{card.ranks} ranks"
        early = ", stopped early" if card.is_stopped_early else ""
        facts = [
            ("network", f"{self.name} on {card.features.backbone.get('name')}"),
            ("classes", f"{len(card.classes)}"),
            ("rows", ", ".join(f"{name} {count:,}" for name, count in card.rows.items())),
            ("epochs", f"{len(card.history)}{early}; the best is {card.best_epoch}"),
            *((name.replace("_", " "), f"{value:.4f}") for name, value in card.metrics.items()),
            ("trained", f"{card.created_at}, on {ranks}"),
            ("features", card.features.url),
            ("model id", card.model_id[:16]),
        ]
        return Summary(f"Model {self.url}", facts)


def load_model(model: str | Path, *, registry: str | None = None) -> Model:
    """Loads a trained model.

    Args:
        model: a folder, the id of a run, ``name@alias`` of a registered model, or ``zk://host:port/path``.
        registry: an MLflow tracking URI; default: that of the environment, or `sqlite:///runs/mlflow.db`.

    Raises:
        UsageError: there is no model of that name; the message says which there are.
        JobError: the model is damaged, or the registry cannot be reached.
    """
    from featurize.storage import absolute_url

    folder = folder_of(model, registry=registry)
    return Model(absolute_url(folder), read_folder(folder))


def as_model(model: Model | str | Path) -> Model:
    """`model` itself, or the model of that name; for errors see `load_model`."""
    return model if isinstance(model, Model) else load_model(model)
