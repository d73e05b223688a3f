"""HEIC photos, read by `pillow-heif`, and which files of the HEIF family are AVIF instead.

libheif gives upright pictures, by the properties `irot` and `imir` of an image. EXIF may repeat those or contradict them: it does
not count. Sources: ISO/IEC 23008-12, 6.5.10, 6.5.12 and annex A; ISO/IEC 23000-22 for AVIF.
"""

from typing import Final

from PIL import ImageFile

try:
    import pillow_heif

    pillow_heif.libheif_version()  # raises what went wrong with its library
except ImportError:  # the extra `formats` has it
    pillow_heif = None

_HEIC_BRANDS: Final = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))
_OPEN_BRANDS: Final = frozenset((b"mif1", b"msf1"))
"""Brands that do not say how pixels are packed; the further brands of the file do."""
_LOOKED_AT: Final = 512

IS_READ: Final = pillow_heif is not None
"""Whether the package is there."""

if pillow_heif is not None:  # workers decode many images at a time, of which only the main picture counts
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False


def opener() -> type[ImageFile.ImageFile]:
    """The class for these files. It reads no pixels until it is loaded."""
    if pillow_heif is None:
        raise ModuleNotFoundError("pillow-heif is not installed")
    found: type[ImageFile.ImageFile] = pillow_heif.HeifImageFile
    return found


def is_heif(content: bytes) -> bool:
    """Whether the first bytes are those of a HEIC photo or another HEIF image, not of an AVIF."""
    return bool(brands := _brands(content)) and (
        brands[0] in _HEIC_BRANDS or (brands[0] in _OPEN_BRANDS and not _AVIF_BRANDS & set(brands))
    )


def is_avif(content: bytes) -> bool:
    """Whether the first bytes are those of an AVIF."""
    return bool(brands := _brands(content)) and (
        brands[0] in _AVIF_BRANDS or (brands[0] in _OPEN_BRANDS and bool(_AVIF_BRANDS & set(brands)))
    )


def _brands(content: bytes) -> list[bytes]:
    """The main brand of a file of this family and its further ones; none: it is no such file."""
    if content[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(content[:4], "big"), _LOOKED_AT)
    return [content[8:12], *(content[at : at + 4] for at in range(16, end - 3, 4))]
