"""What of an image file makes its pixels: a decoder is given that alone, so that metadata never costs a picture.

JPEG segments and PNG chunks are taken apart here. EXIF, XMP and colour profiles are handed over beside the pixels, whatever else
describes the picture is dropped, and what is damaged among it is noted. Other formats are passed on as they are.

Sources: ITU-T T.81, B.1.1.4 and Annex F of T.871 (JPEG, JFIF); PNG specification, third edition, chapters 5 and 11.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_EXIF, _XMP, _PROFILE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_START_OF_SCAN, _APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_XMP_KEYWORD, _RAW_PROFILE = b"XML:com.adobe.xmp", b"Raw profile type "
_MAX_PROFILE = 4 << 20
"""Largest colour profile, and largest EXIF or XMP block, in bytes; a longer one is left out."""


class DamagedFileError(Exception):
    """What makes the pixels is damaged. The message is the reason, without the name of the format."""


@dataclass(slots=True)
class Parts:
    """An image file, taken apart.

    Attributes:
        content: the file without its metadata.
        exif: the EXIF block, which begins with its byte order.
        xmp: the XMP packet.
        profile: the ICC profile.
        transparent: of a PNG, the sample values, as stored, of the transparent colour: one of grey, three of RGB.
        notes: what could not be read of the metadata, a line each.
    """

    content: bytes
    exif: bytes | None = None
    xmp: bytes | None = None
    profile: bytes | None = None
    transparent: tuple[int, ...] | None = None
    notes: list[str] = field(default_factory=list)


def take_apart(content: bytes) -> Parts:
    """The parts of an image file.

    Raises:
        DamagedFileError: a checksum of what makes the pixels is wrong.
    """
    if content.startswith(_PNG):
        return _png_parts(content)
    return _jpeg_parts(content) if content.startswith(_JPEG) else Parts(content)


def _png_parts(content: bytes) -> Parts:
    parts, kept, is_whole = Parts(content), list[bytes | memoryview]([_PNG]), True
    for kind, data, chunk, checksum in _chunks(content):
        is_right = zlib.crc32(data, zlib.crc32(kind)) == checksum
        is_critical = not kind[0] & 0x20
        if is_critical and not is_right:
            raise DamagedFileError(f"the checksum of its {kind.decode()} chunk is wrong")
        if is_critical or (kind == b"tRNS" and is_right):
            kept.append(chunk)
        else:
            is_whole = False
            _read_chunk(parts, kind, bytes(data), is_right=is_right)
        if kind == b"tRNS" and is_right and len(data) in (2, 6):
            parts.transparent = struct.unpack(f">{len(data) // 2}H", data)
        if kind == b"IEND":
            break
    if not is_whole:
        parts.content = b"".join(kept)
    return parts


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview, memoryview, int]]:
    """The chunks of a PNG: type, data, the whole of it, checksum. The last one may be cut off: the decoder says so."""
    view, at = memoryview(content), len(_PNG)
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        if not kind.isalpha():
            raise DamagedFileError("what follows one of its chunks is no chunk")
        end = at + 12 + length
        if end > len(content):
            break
        yield kind, view[at + 8 : end - 4], view[at:end], struct.unpack_from(">I", content, end - 4)[0]
        at = end
    if at < len(content) and not _is_ancillary(content, at):
        yield b"IDAT", view[:0], view[at:], zlib.crc32(b"IDAT")  # goes on as it is


def _is_ancillary(content: bytes, at: int) -> bool:
    return at + 8 <= len(content) and bool(content[at + 4] & 0x20)


def _read_chunk(parts: Parts, kind: bytes, data: bytes, *, is_right: bool) -> None:
    """Takes what is useful from a chunk that makes no pixels."""
    name = kind.decode()
    if kind not in (b"iCCP", b"eXIf", b"iTXt", b"zTXt", b"tEXt", b"tRNS"):
        return
    if not is_right:
        parts.notes.append(f"its {name} chunk was left out: its checksum is wrong")
        return
    try:
        if kind == b"eXIf":
            parts.exif = data.removeprefix(_EXIF)
        elif kind == b"iCCP":
            parts.profile = _inflate(data.partition(b"\0")[2])
        elif kind == b"iTXt" and data.startswith(_XMP_KEYWORD + b"\0"):
            parts.xmp = _international_text(data[len(_XMP_KEYWORD) + 1 :])
        elif kind in (b"zTXt", b"tEXt") and data.startswith(_RAW_PROFILE):
            keyword, _, text = data.partition(b"\0")
            if keyword.removeprefix(_RAW_PROFILE) in (b"exif", b"APP1") and parts.exif is None:
                parts.exif = _raw_profile(_inflate(text) if kind == b"zTXt" else text)
    except (ValueError, zlib.error) as error:
        parts.notes.append(f"its {name} chunk was left out: {error}")


def _inflate(data: bytes) -> bytes:
    """What follows the keyword of a chunk: the method, which is 0, and a zlib stream."""
    if data[:1] != b"\0":
        raise ValueError("its compression method is unknown")
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(data[1:], _MAX_PROFILE)
    if unpacking.unconsumed_tail:
        raise ValueError(f"it is longer than {_MAX_PROFILE} bytes")
    if not unpacking.eof:
        raise ValueError("it is cut off")
    return text


def _international_text(data: bytes) -> bytes:
    """The text of an iTXt chunk, after its keyword: a flag, the method, a language, a translated keyword, the text."""
    flag, (_, _, rest) = data[:1], data[2:].partition(b"\0")
    text = rest.partition(b"\0")[2]
    return _inflate(b"\0" + text) if flag == b"\1" else text


def _raw_profile(text: bytes) -> bytes:
    """A profile that ImageMagick wrote: a name, a length, and hexadecimal digits in lines."""
    lines = text.split(b"\n")
    return bytes.fromhex(b"".join(lines[3:]).decode("ascii")).removeprefix(_EXIF)


def _jpeg_parts(content: bytes) -> Parts:
    parts, kept, profile = Parts(content), list[bytes](), dict[int, bytes]()
    at = begin = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD8:  # a byte that fills, or a marker without a length
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _START_OF_SCAN:
            break
        (length,) = struct.unpack_from(">H", content, at + 2)
        end = at + 2 + length
        if length < 2 or end > len(content):
            break  # the decoder says what is wrong
        if (_APP1 <= marker <= _APP15 and marker != _APP14) or marker == _COMMENT:
            kept.append(content[begin:at])
            begin = end
            _read_segment(parts, profile, marker, content[at + 4 : end])
        at = end
    if begin > 2:
        parts.content = b"".join([content[:2], *kept, content[begin:]])
    if profile:
        parts.profile = b"".join(profile[number] for number in sorted(profile))
    return parts


def _read_segment(parts: Parts, profile: dict[int, bytes], marker: int, data: bytes) -> None:
    """Takes what is useful from a segment that makes no pixels."""
    if marker == _APP1 and data.startswith(_EXIF):
        parts.exif = (parts.exif or b"") + data[len(_EXIF) :]  # a block of more than 64 kB has several segments
    elif marker == _APP1 and data.startswith(_XMP) and parts.xmp is None:
        parts.xmp = data[len(_XMP) :]
    elif marker == _APP2 and data.startswith(_PROFILE) and len(data) > len(_PROFILE) + 2:
        profile.setdefault(data[len(_PROFILE)], data[len(_PROFILE) + 2 :])
