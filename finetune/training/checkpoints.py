"""Checkpoints: the state of a training after an epoch, in one file beside the model that it will write.

One file holds weights, optimizer and history, so that it is complete or missing. It is removed once the model is published.
"""

import io
import json
import zlib
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from featurize import storage
from featurize.errors import JobError, first_line
from featurize.tables.documents import DamagedDocumentError, parse_document
from finetune.training.state import TrainingState

CHECKPOINT_NAME = "checkpoint.npz"
SCHEMA_VERSION = 1
_GROUPS = ("weights", "optimizer", "best_weights")


class _Facts(BaseModel):
    """What a checkpoint says besides its arrays, of which `counts` has the number in each group."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    model_id: str
    epoch: int
    best_epoch: int
    history: list[dict[str, float]]
    counts: dict[str, int]


def write_checkpoint(url: str, model_id: str, state: TrainingState) -> None:
    """Replaces the checkpoint in the model folder at `url`.

    Raises:
        JobError: It cannot be written; the previous one is still there.
    """
    facts = {
        "schema_version": SCHEMA_VERSION,
        "model_id": model_id,
        "epoch": state.epoch,
        "best_epoch": state.best_epoch,
        "history": state.history,
        "counts": {group: len(getattr(state, group)) for group in _GROUPS},
    }
    arrays = {f"{group}-{number}": array for group in _GROUPS for number, array in enumerate(getattr(state, group))}
    file = io.BytesIO()
    np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    checkpoint_url = storage.join_url(url, CHECKPOINT_NAME)
    try:
        storage.write_bytes(checkpoint_url, file.getvalue())
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise JobError(f"{checkpoint_url} of epoch {state.epoch} cannot be written: {reason}.") from error


def read_checkpoint(url: str, model_id: str) -> TrainingState | None:
    """The state in the checkpoint of the model folder at `url`; None where there is none, or one of another model.

    Raises:
        JobError: It is damaged.
    """
    checkpoint_url = storage.join_url(url, CHECKPOINT_NAME)
    try:
        with np.load(io.BytesIO(storage.read_bytes(checkpoint_url)), allow_pickle=False) as arrays:
            facts = parse_document(arrays["facts"].tobytes(), _Facts, version=SCHEMA_VERSION, origin=checkpoint_url)
            if facts.model_id != model_id:
                return None
            groups = {group: _read_group(arrays, group, facts.counts[group]) for group in _GROUPS}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (BadZipFile, ValueError, KeyError, EOFError, OSError, zlib.error, DamagedDocumentError) as error:
        raise JobError(
            f"{checkpoint_url} is damaged: {first_line(error)}. Train without `resume` (--resume) to start from the beginning."
        ) from error
    return TrainingState(epoch=facts.epoch, best_epoch=facts.best_epoch, history=facts.history, **groups)


def has_checkpoint(url: str) -> bool:
    """Whether a training has left a checkpoint in the model folder at `url`."""
    return storage.exists(storage.join_url(url, CHECKPOINT_NAME))


def remove_checkpoint(url: str) -> None:
    """Removes the checkpoint of the model folder at `url`, if there is one."""
    storage.remove(storage.join_url(url, CHECKPOINT_NAME))


def _read_group(arrays: Any, group: str, count: int) -> list[NDArray[Any]]:
    return [arrays[f"{group}-{number}"] for number in range(count)]
