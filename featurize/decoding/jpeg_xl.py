"""JPEG XL files: their size before a pixel is decoded, and the pixels, by the decoder of `pillow-jxl-plugin`.

That package's own class for Pillow decodes an image of any size as it opens it, gives the last picture of an animation, and
confuses grey of 16 bits with alpha with that of 8. So only the decoder under it is used.

The decoder turns pictures by the orientation that the codestream has; that of EXIF does not count, as 18181-2 says.

Sources: ISO/IEC 18181-1, annexes B and D (the fields at the start of a codestream); 18181-2 (boxes).
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from PIL import Image, ImageFile

try:
    import pillow_jxl
except ImportError:  # the extra `formats` has it
    pillow_jxl = None

_CODESTREAM, _CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_WHOLE, _PART = b"jxlc", b"jxlp"
_HEADER_BYTES: Final = 64
"""More than the fields take that are read here."""

_RATIOS: Final = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_SIDE_BITS: Final = ((9, 1), (13, 1), (18, 1), (30, 1))
_PREVIEW_BITS: Final = ((6, 1), (8, 65), (10, 321), (12, 1345))
_PREVIEW_EIGHTS: Final = ((0, 16), (0, 32), (5, 1), (9, 33))


IS_READ: Final = pillow_jxl is not None
"""Whether the package is there."""


def is_jxl(content: bytes) -> bool:
    """Whether the first bytes are those of a JPEG XL."""
    return content.startswith((_CODESTREAM, _CONTAINER))


class JxlFile(ImageFile.ImageFile):
    """A JPEG XL: opened, it knows its size; loaded, all the rest.

    Attributes:
        is_animation: whether it is one. The decoder would give its last picture.
        notes: what of its metadata could not be read, a line each.
        jpeg: once loaded, the JPEG that was packed into this file without loss, and is to be read in its place; or None.
    """

    format = "JXL"
    format_description = "JPEG XL"
    jpeg: bytes | None = None
    is_animation = False

    def _open(self) -> None:
        self._content: bytes | None = self.fp.read() if self.fp is not None else b""
        self.notes: list[str] = []
        codestream = bytearray()
        for kind, data in _boxes(self._content):
            if kind in (_WHOLE, _PART):
                codestream += data[: _HEADER_BYTES + 4][4 * (kind == _PART) :]
            elif kind == b"Exif":
                at = min((place for place in (data.find(b"II*\0"), data.find(b"MM\0*")) if place >= 0), default=0)
                self.info["exif"] = data[at:]  # after an offset, which some leave out
            elif kind == b"xml ":
                self.info["xmp"] = data
            elif kind == b"brob" and data[:4] in (b"Exif", b"xml "):
                self.notes.append(f"its {data[:4].decode().strip()} box was left out: it is compressed")
        self._size, self.is_animation = _read_header(bytes(codestream))
        self._mode = "RGB"  # until it is loaded
        self.tile = []

    def load(self) -> Any:
        """Decodes the picture, in this thread, unless it is a JPEG."""
        if self._content is not None:
            content, self._content = self._content, None
            is_jpeg, mode, size, samples, profile = _decoded(content)
            if is_jpeg:
                self.jpeg = samples
                return None
            picture = _picture(mode, size, samples)
            self._size, self._mode, self.im = picture.size, picture.mode, picture.im
            if profile:
                self.info["icc_profile"] = profile
        return super().load()


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each box of a container; a bare codestream is given like the box it would be in."""
    if content.startswith(_CODESTREAM):
        yield _WHOLE, content
        return
    at = 0
    while at + 8 <= len(content):
        start, length, kind = at + 8, int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if length == 1:
            start, length = at + 16, int.from_bytes(content[at + 8 : at + 16], "big")
        end = len(content) if length == 0 else at + length
        if end < start:
            return
        yield kind, content[start:end]
        at = end


class _Bits:
    """The bits of a header, from the lowest of its first byte."""

    def __init__(self, content: bytes) -> None:
        self._left, self._number = 8 * len(content), int.from_bytes(content, "little")

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("its header is truncated")
        value = self._number & ((1 << count) - 1)
        self._number >>= count
        return value

    def choose(self, choices: tuple[tuple[int, int], ...]) -> int:
        """A number of one of four kinds, each with a number of bits and what is added."""
        bits, added = choices[self.take(2)]
        return self.take(bits) + added

    def size(
        self,
        eighths: tuple[tuple[int, int], ...] | None = None,
        sides: tuple[tuple[int, int], ...] = _SIDE_BITS,
    ) -> tuple[int, int]:
        """Width and height in pixels; `eighths` says how a side is written that is a multiple of eight; None: in five bits."""

        def side() -> int:
            if not in_eighths:
                return self.choose(sides)
            return 8 * (self.take(5) + 1 if eighths is None else self.choose(eighths))

        in_eighths = self.take(1)
        height = side()
        ratio = self.take(3)
        if not ratio:
            return side(), height
        width, to = _RATIOS[ratio - 1]
        return height * width // to, height


def _read_header(codestream: bytes) -> tuple[tuple[int, int], bool]:
    """Width and height in pixels of the upright picture, and whether it is an animation."""
    bits = _Bits(codestream[len(_CODESTREAM) : _HEADER_BYTES])
    width, height = bits.size()
    if bits.take(1) or not bits.take(1):  # everything, or what comes now, has its usual value
        return (width, height), False
    is_sideways = bits.take(3) >= 4
    if bits.take(1):
        bits.size()  # what it should be shown at
    if bits.take(1):
        bits.size(_PREVIEW_EIGHTS, _PREVIEW_BITS)
    return ((height, width) if is_sideways else (width, height)), bool(bits.take(1))


def _decoded(content: bytes) -> tuple[bool, str, tuple[int, int], bytes, bytes]:
    """Whether it is a JPEG, its mode and size if not, its samples or the JPEG, and its profile."""
    if pillow_jxl is None:
        raise ModuleNotFoundError("pillow-jxl-plugin is not installed")
    try:
        is_jpeg, header, samples, profile, _ = pillow_jxl.Decoder(num_threads=0)(content)
    except RuntimeError as error:  # its message is the same for whatever is wrong
        raise ValueError("its pixels are damaged or cut off") from error
    return is_jpeg, header.mode, (header.width, header.height), bytes(samples), bytes(profile)


def _picture(mode: str, size: tuple[int, int], samples: bytes) -> Image.Image:
    """The decoder reduces RGB to samples of 8 bits, and grey not, nor does it say so if there is alpha."""
    if mode == "LA":
        width = len(samples) // (2 * size[0] * size[1])
        kind, white = {1: ("u1", 255), 2: ("u2", 65535), 4: ("f4", 1)}[width]
        levels = np.frombuffer(samples, kind).astype(np.float32) * np.float32(255 / white)
        samples = np.rint(levels.clip(0, 255)).astype(np.uint8).tobytes()
    return Image.frombytes("F" if mode == "F;16" else mode, size, samples)
