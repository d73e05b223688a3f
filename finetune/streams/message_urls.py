"""Images whose URLs are sent to a stream: whoever sends one may be wrong, and that is a reject and not the end of the stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from featurize import storage
from featurize.sources.listing import Fetch, ImageReadError, PlannedImage
from featurize.sources.readers import FileReader

_BEGINNINGS = ("/", "file:/", *(f"{scheme}://" for scheme in storage.SCHEMES))
_NO_FILE = (None, "no file")


@dataclass(frozen=True)
class MessageFileReader(FileReader):
    """Files that messages name, as `FileReader`; of what is no file the size is null, and it is not touched."""

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        """See `ContentReader`."""
        fetches = zip(images, super().open(images), strict=True)
        return (partial(_refuse, image.path) if image.bytes_size is None else fetch for image, fetch in fetches)


def read_url(value: bytes | None) -> str | None:
    """The URL in a message, as `finetune predict` would name the file; None where there is none.

    It is taken as it is: what is percent-encoded stays so.
    """
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError:
        return None
    return storage.absolute_url(text) if text.startswith(_BEGINNINGS) and "\0" not in text else None


def size_and_stamp(url: str) -> tuple[int | None, str]:
    """The size in bytes of the file at `url`, and its stamp, as a walk over its folder would have it; no size: there is none.

    Raises:
        OSError, JobError: the storage does not answer.
    """
    if not url.startswith(_BEGINNINGS):
        return _NO_FILE
    try:
        file = storage.find_file(url)
    except (RuntimeError, ValueError):  # a name service that is in no setting here, or no host and port
        return _NO_FILE
    except OSError:  # a name that the storage does not take, or one that this user may not see
        if not storage.exists(url.removesuffix(storage.open_filesystem(url)[1]) + "/"):
            raise
        return _NO_FILE
    return _NO_FILE if file is None else (file.size, f"{file.size}:{file.modified}")


def _refuse(path: str) -> bytes:
    if path.startswith(_BEGINNINGS):
        raise ImageReadError("there is no such file, or this user may not read it")
    raise ImageReadError("the message is neither an absolute path nor a URL that begins with file:// or hdfs://")
