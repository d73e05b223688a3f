"""The checkpoint of a stream: beside what Spark keeps there, what the stream is of, and which model labels which batch.

<checkpoint>/firn/stream.json     where images come from and where labels go
<checkpoint>/firn/batch-<id>.json the model of a batch; written before it is labelled, so that a batch that is run again
                                  after a kill is labelled by the same one, wherever the alias points by then
<checkpoint>/firn/_claim.json     the stream that is running
<checkpoint>/metadata, ...        Spark's own: which image is in which batch, and which batches are done
"""

from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from featurize import storage
from featurize.errors import JobError, UsageError

FOLDER = "firn"
STREAM_NAME = "stream.json"
_SPARKS_NAME = "metadata"
_PIN = "batch-"
Document = TypeVar("Document", bound=BaseModel)


class StreamRecord(BaseModel):
    """`stream.json`: what may not change while a checkpoint is in use.

    Attributes:
        messages: what the messages of a topic are; None: images come into a folder.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    images: str
    output: str
    messages: str | None = None


class Pin(BaseModel):
    """`batch-<id>.json`: the model of a batch.

    Attributes:
        query: the id that Spark has given the stream; a batch of another one may have the same number.
        name: the model as it was asked for.
        url: its folder.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    query: str
    model_id: str
    name: str
    url: str
    pinned_at: str


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint at `url`."""

    url: str

    @property
    def own_url(self) -> str:
        """Of Firn's part of it."""
        return storage.join_url(self.url, FOLDER)

    def check(self, record: StreamRecord) -> None:
        """Sees that the checkpoint is new, or that of the stream which `record` is of.

        Raises:
            UsageError: it is of another stream, or no stream's of Firn's.
            JobError: it is damaged.
        """
        there = read_document(storage.join_url(self.own_url, STREAM_NAME), StreamRecord)
        if there is None:
            others = [file for file in storage.list_files(self.url) if not file.startswith(f"{self.own_url}/")]
            if others:
                raise UsageError(
                    f"{self.url} is no checkpoint of `finetune stream`: {min(others)} is there. Name another."
                )
            return
        for option in ("images", "output", "messages"):
            known, asked = getattr(there, option), getattr(record, option)
            if known != asked:
                raise UsageError(
                    f"{self.url} is the checkpoint of a stream with `--{option}` {known}. Got {asked}. A checkpoint knows which "
                    f"images of one place are labelled in one output: name another."
                )

    def begin(self, record: StreamRecord) -> None:
        """Writes what the stream is of, if it is not there yet. Raises as `check`."""
        self.check(record)
        url = storage.join_url(self.own_url, STREAM_NAME)
        if not storage.exists(url):
            storage.write_json(url, record.model_dump())

    def query_id(self) -> str:
        """The id that Spark has given the stream. Spark writes it before the first batch.

        Raises:
            JobError: it is missing or damaged.
        """
        url = storage.join_url(self.url, _SPARKS_NAME)
        try:
            return str(storage.read_json(url)["id"])
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise JobError(f"{url}, which Spark writes, is missing or damaged.") from error

    def read_pin(self, batch_id: int, query: str) -> Pin | None:
        """The model of a batch that was begun before; None for a new batch.

        Raises:
            JobError: what is there is damaged.
        """
        pin = read_document(self.pin_url(batch_id), Pin)
        return pin if pin is not None and pin.query == query else None

    def write_pin(self, batch_id: int, pin: Pin) -> None:
        """Says which model labels a batch, and removes what was said of batches before it: when one begins, those are done."""
        storage.write_json(self.pin_url(batch_id), pin.model_dump())
        for file in storage.list_files(self.own_url):
            if file.startswith(storage.join_url(self.own_url, _PIN)) and file != self.pin_url(batch_id):
                storage.remove(file)

    def pin_url(self, batch_id: int) -> str:
        """Of the file that names the model of a batch."""
        return storage.join_url(self.own_url, f"{_PIN}{batch_id}.json")


def read_document(url: str, kind: type[Document]) -> Document | None:
    """The JSON document at `url`; None where there is none.

    Raises:
        JobError: it is damaged.
    """
    try:
        return kind.model_validate(storage.read_json(url))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, ValidationError) as error:
        raise JobError(f"{url} is damaged, or of another version of Firn.") from error
