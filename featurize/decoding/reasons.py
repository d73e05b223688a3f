"""Why bytes are no usable image: every fault becomes a `DecodeError` whose message is what was found.

The format of a file is recognised by its bytes alone, and only the decoders in `FORMATS` are ever used: Pillow knows many more,
some of which start other programs (EPS runs Ghostscript).
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin

from featurize.decoding import heif, jpeg_xl
from featurize.decoding.kinds import name_kind

_ADDED: Final = {"HEIF": heif.IS_READ, "JXL": jpeg_xl.IS_READ}
"""The formats that packages of the extra `formats` read, and whether those are there."""

FORMATS: Final = (
    *("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000"),
    *(name for name, is_read in _ADDED.items() if is_read),
)
"""Pillow's names of formats. "JPEG" includes MPO (its first picture); "PPM" includes PBM, PGM and PFM."""

_SIGNATURES: Final = {"HEIF": heif.is_heif, "JXL": jpeg_xl.is_jxl, "AVIF": heif.is_avif}
"""How a format is recognised, where Pillow has not the last word."""

# Process-wide and set once, here: `warnings.catch_warnings` around a call is not safe with threads, and a plugin that is
# not registered yet would be imported in whichever thread comes first. Pillow's own limit only warns at first, so
# `decode` replaces it. Its warnings are about damaged EXIF, which does not affect the picture.
Image.init()
Image.MAX_IMAGE_PIXELS = None
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # workers decode many images at a time
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_NOT_OPENED: Final = "not identified by this driver"
_TAGS_OF_PIXELS: Final = {
    258: "bits",
    277: "samples",
    339: "sample format",
    262: "photometric interpretation",
    338: "extra samples",
}
_UNKNOWN_PIXELS: Final = "unknown pixel mode"
_SIGNS_OF_AN_END: Final = (
    *("truncated", "not enough image data", "reached eof", "unexpected end", "end of file"),
    *("requires a buffer", "index out of range", "incomplete checksum"),
)
"""What Pillow says where a file ends too soon."""


class DecodeError(Exception):
    """The bytes are not a usable image. The message is the reason: one line, without a path."""


@contextmanager
def faults_as_decode_errors(content: bytes) -> Iterator[None]:
    """Raises DecodeError in place of whatever else is raised while `content` is decoded."""
    try:
        yield
    except DecodeError:
        raise
    # The one broad except here. On damaged bytes Pillow raises nearly anything (OSError, SyntaxError, struct.error, zlib.error,
    # KeyError, ZeroDivisionError, MemoryError, ...): no list is complete, and one bad file must not end a job.
    except Exception as error:
        raise DecodeError(reason_of(error, content)) from error


def reason_of(error: Exception, content: bytes) -> str:
    """The reason in one line, without the byte counts and addresses that would make each reason unique."""
    kind = claimed_format(content)
    if isinstance(error, MemoryError):
        return "not enough memory to decode the image"
    if kind is None:
        return unknown_format(content)
    detail = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, SyntaxError) and detail == _NOT_OPENED:
        return f"the {kind} header gives no size, a size of zero, or no kind of pixels"
    if detail == _UNKNOWN_PIXELS:
        return f"{kind} images of this kind of pixels are not supported: {_pixels_of_tiff(content)[:200]}"
    if any(sign in detail.lower() for sign in _SIGNS_OF_AN_END):
        return f"the {kind} file is truncated"
    return f"the {kind} file is damaged: {detail}"


def _pixels_of_tiff(content: bytes) -> str:
    """The tags of a TIFF that say what its samples are, as far as they can be read."""
    found = list[str]()
    with suppress(Exception):  # as above: the file is damaged, and this only describes it
        directory = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        file = io.BytesIO(content)
        file.seek(directory.next)
        directory.load(file)
        for tag, name in _TAGS_OF_PIXELS.items():
            if tag in directory:
                found.append(f"{name} {directory[tag]}")
    return ", ".join(found) or "its tags cannot be read"


def unknown_format(content: bytes) -> str:
    """The reason for bytes that have no known signature: what they are instead, if they say it."""
    found = name_kind(content)
    reason = "not an image in a known format" + (f", but {found}" if found is not None else "")
    return f"{reason}, which Firn reads with its extra `formats`" if _needs_extra(content) else reason


def _needs_extra(content: bytes) -> bool:
    return any(_has_signature(content, name) for name, is_read in _ADDED.items() if not is_read)


def claimed_format(content: bytes) -> str | None:
    """The format whose signature the first bytes have, if any."""
    return next((name for name in FORMATS if _has_signature(content, name)), None)


def _has_signature(content: bytes, name: str) -> bool:
    if name in _SIGNATURES:
        return _SIGNATURES[name](content)
    accept = Image.OPEN[name][1]
    return accept is not None and accept(content[:16]) is True


def open_file(content: bytes, kind: str) -> ImageFile.ImageFile:
    """Opens a file of one of `FORMATS`. `Image.open` would hide what is wrong, and try others."""
    opener = heif.opener() if kind == "HEIF" else jpeg_xl.JxlFile if kind == "JXL" else Image.OPEN[kind][0]
    return opener(io.BytesIO(content), "")
