"""A stream's checkpoint: beside Spark's own files, what the stream labels, and which model labels which batch.

<checkpoint>/firn/stream.json     where images come from and where labels go
<checkpoint>/firn/batch-<id>.json the model of a batch; written before the batch is labelled, so that a batch that is repeated
                                  after a kill is labelled by the same model, even if the alias has moved
<checkpoint>/firn/_claim.json     the stream that is running
<checkpoint>/metadata, ...        Spark's own: which image is in which batch, and which batches are done
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from featurize import storage
from featurize.errors import JobError, UsageError
from featurize.storage.inner_path import InnerName, NamedUrl
from featurize.tables.documents import read_document

FOLDER = "firn"
STREAM_NAME = "stream.json"
_SPARKS_NAME = "metadata"
_SPARKS_COMMITS = "commits"  # a file for each batch that is done
_PIN = "batch-"
SCHEMA_VERSION = 1
"""The schema version of `stream.json` and `batch-<id>.json`."""


class StreamRecord(BaseModel):
    """`stream.json`: the facts that must not change while a checkpoint is in use.

    Attributes:
        images: URL of the place that the images come from.
        output: URL of the predictions.
        messages: What a topic's messages are; None: the images arrive in a folder.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    images: str
    output: NamedUrl
    messages: str | None = None


class Pin(BaseModel):
    """`batch-<id>.json`: the model of a batch.

    Attributes:
        query: Spark's id of the stream; a batch of another stream may have the same number.
        name: The model as the caller named it.
        url: URL of the model's folder.
        pinned_at: When the model was chosen, ISO 8601 in UTC.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    query: str
    model_id: InnerName
    name: str
    url: NamedUrl
    pinned_at: str


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint at `url`."""

    url: str

    @property
    def own_url(self) -> str:
        """URL of Firn's own part of the checkpoint."""
        return storage.join_url(self.url, FOLDER)

    def check(self, record: StreamRecord) -> None:
        """Checks that the checkpoint is new or belongs to the stream that `record` describes.

        Raises:
            UsageError: It belongs to another stream, or to no stream of Firn.
            JobError: It is damaged, or has another schema version.
        """
        there = read_document(storage.join_url(self.own_url, STREAM_NAME), StreamRecord, version=SCHEMA_VERSION)
        if there is None:
            others = [file for file in storage.list_files(self.url) if not file.startswith(f"{self.own_url}/")]
            if others:
                raise UsageError(
                    f"{self.url} is not a checkpoint of `finetune stream`: it contains {min(others)}. Name another folder."
                )
            return
        for option in ("images", "output", "messages"):
            known, asked = getattr(there, option), getattr(record, option)
            if known != asked:
                raise UsageError(
                    f"{self.url} is the checkpoint of a stream with `{option}` {known}. Got {asked}. A checkpoint is for one "
                    f"source of images and one output: name another."
                )

    def begin(self, record: StreamRecord) -> None:
        """Writes what the stream labels, if it is not recorded yet. Raises the errors of `check`."""
        self.check(record)
        url = storage.join_url(self.own_url, STREAM_NAME)
        if not storage.exists(url):
            storage.write_json(url, record.model_dump())

    def query_id(self) -> str:
        """Spark's id of the stream, which Spark writes before the first batch.

        Raises:
            JobError: It is missing or damaged.
        """
        url = storage.join_url(self.url, _SPARKS_NAME)
        try:
            return str(storage.read_json(url)["id"])
        except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise JobError(f"{url}, which Spark writes, is missing or damaged.") from error

    def read_pin(self, batch_id: int, query: str) -> Pin | None:
        """The model that an earlier attempt recorded for a batch; None for a new batch.

        Raises:
            JobError: The record is damaged, or has another schema version.
        """
        pin = read_document(self.pin_url(batch_id), Pin, version=SCHEMA_VERSION)
        return pin if pin is not None and pin.query == query else None

    def write_pin(self, batch_id: int, pin: Pin) -> Pin:
        """Records which model labels a batch, unless another driver of this stream has: the first record counts.

        Records of earlier batches are removed: when one begins, those are done.

        Returns:
            The record that counts.
        """
        url = self.pin_url(batch_id)
        if not storage.create_exclusively(url, storage.encode_json(pin.model_dump())):
            there = self.read_pin(batch_id, pin.query)
            if there is not None:
                return there
            storage.write_json(url, pin.model_dump())  # it is of a stream whose checkpoint Spark has begun anew
        for file in storage.list_files(self.own_url):
            number = file.removeprefix(storage.join_url(self.own_url, _PIN)).removesuffix(".json")
            if number.isdecimal() and int(number) < batch_id:
                storage.remove(file)
        return pin

    def check_unfinished(self, batch_id: int) -> None:
        """Checks that no other driver of this stream has finished a batch, or a later one.

        Raises:
            JobError: one has, and this driver must end: it was taken for dead.
        """
        names = (file.rpartition("/")[2] for file in storage.list_files(storage.join_url(self.url, _SPARKS_COMMITS)))
        if any(name.isdecimal() and int(name) >= batch_id for name in names):
            raise JobError(
                f"{self.url}: another driver of this stream has finished batch {batch_id}, so this one ends; no image is lost."
            )

    def pin_url(self, batch_id: int) -> str:
        """URL of the file that names the model of a batch."""
        return storage.join_url(self.own_url, f"{_PIN}{batch_id}.json")
