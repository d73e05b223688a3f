"""Images whose URLs are sent to a stream: a wrong URL becomes a reject and does not end the stream."""

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
    """Reads the files that messages name, like `FileReader`; an image that is not a file has size null and is not touched."""

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        """See `ContentReader`."""
        fetches = zip(images, super().open(images), strict=True)
        return (partial(_refuse, image.path) if image.bytes_size is None else fetch for image, fetch in fetches)


def read_url(value: bytes | None) -> str | None:
    """The URL in a message, as `finetune predict` would name the file; None where there is none.

    It is taken literally: percent-encoding is not decoded.
    """
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError:
        return None
    return storage.absolute_url(text) if text.startswith(_BEGINNINGS) and "\0" not in text else None


def size_and_stamp(url: str) -> tuple[int | None, str]:
    """The size in bytes of the file at `url`, and its stamp, as a walk over its folder gives them; None as size: no such file.

    Raises:
        OSError, JobError: The storage does not answer.
    """
    if not url.startswith(_BEGINNINGS):
        return _NO_FILE
    try:
        file = storage.find_file(url)
    except (RuntimeError, ValueError):  # an unknown name service, or a URL without host and port
        return _NO_FILE
    except OSError:  # a name that the storage refuses, or a file that this user may not read
        if not storage.exists(url.removesuffix(storage.open_filesystem(url)[1]) + "/"):
            raise
        return _NO_FILE
    return _NO_FILE if file is None else (file.size, f"{file.size}:{file.modified}")


def _refuse(path: str) -> bytes:
    if path.startswith(_BEGINNINGS):
        raise ImageReadError("there is no such file, or this user may not read it")
    raise ImageReadError("the message is neither an absolute path nor a URL that begins with file:// or hdfs://")
