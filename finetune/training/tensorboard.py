"""TensorBoard event files of a training, in the folder `tensorboard` of the model."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurize import storage
from finetune.training.loop import EpochReport
from finetune.training.state import Entry

EVENTS_FOLDER = "tensorboard"


@contextmanager
def event_files(url: str) -> Iterator[EpochReport]:
    """A function to call after each epoch with its entry in the history, for the model folder at `url`.

    TensorFlow writes to a local file, which is copied to the folder after each epoch, so that every storage works.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        writer = tf.summary.create_file_writer(folder)

        def write(entry: Entry) -> None:
            with writer.as_default(step=int(entry["epoch"])):
                for name, value in entry.items():
                    if name != "epoch":
                        tf.summary.scalar(_tag(name), value)
            writer.flush()
            for file in Path(folder).iterdir():
                storage.upload(file, storage.join_url(url, EVENTS_FOLDER, file.name))

        try:
            yield write
        finally:
            writer.close()


def remove_event_files(url: str) -> None:
    """Removes the event files of the model folder at `url`."""
    storage.remove(storage.join_url(url, EVENTS_FOLDER))


def _tag(name: str) -> str:
    """The name under which TensorBoard shows a value: training and validation curves are shown together."""
    if name.startswith("validation_"):
        return f"{name.removeprefix('validation_')}/validation"
    return f"{name}/training" if name in ("loss", "accuracy") else f"speed/{name}"
