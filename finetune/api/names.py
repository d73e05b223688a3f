"""How calls name a model or a feature set: by an object that an earlier call returned, or by its name."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from finetune.registry.resolve import resolve_model

if TYPE_CHECKING:
    from finetune.api.model import Model


class HasUrl(Protocol):
    """A result that says where its data is, such as `featurize.Features`."""

    @property
    def url(self) -> str:
        """Where the data is."""
        ...


def folder_of(model: "Model | str | Path", *, registry: str | None = None) -> str:
    """The URL of the folder of a model.

    Args:
        model: a `Model`, a folder, the id of a run, ``name@alias``, or a node of ZooKeeper, ``zk://host:port/path``.
        registry: an MLflow tracking URI; default: that of the environment, or `sqlite:///runs/mlflow.db`.

    Raises:
        UsageError: there is no model of that name.
        JobError: the registry cannot be reached.
    """
    return resolve_model(str(model), registry=registry) if isinstance(model, str | Path) else model.url


def url_of(place: HasUrl | str | Path) -> str:
    """The URL that a result of an earlier call has, or `place` itself as text."""
    return str(place) if isinstance(place, str | Path) else place.url


def name_of(model: "Model | str | Path") -> str:
    """How the user names a model: as text, so that an alias stays one; a `Model` by its folder."""
    return str(model) if isinstance(model, str | Path) else model.url
