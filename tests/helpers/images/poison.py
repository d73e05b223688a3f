"""Images that are small, valid and a torment to decode."""

from functools import cache

from PIL import Image

from helpers.images.pictures import encode

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_LEVEL = 77


@cache
def _progressive_jpeg(side: int) -> bytes:
    return encode(Image.new("L", (side, side), _LEVEL), "JPEG", progressive=True)


def scan_bomb(scans: int, side: int) -> bytes:
    """A progressive grey JPEG whose last refinement scan comes `scans` times, each time a pass over all coefficients.

    It decodes to a plain grey of 77: libjpeg only warns of scans that follow no plan, and Pillow asks for no warnings.
    The scan refines coefficients that are all zero, and one code of two bytes says so for up to 32,767 blocks of 64
    pixels. At a `side` of 4,000 a scan takes 31 bytes and about 9 ms of processor time: 10,000 scans are 404 kB and 90 s.

    Args:
        scans: at least 1.
        side: width and height in pixels.
    """
    flat = _progressive_jpeg(side)
    start = flat.rindex(_START_OF_SCAN)
    scan = flat[start : -len(_END_OF_IMAGE)]
    return flat[:start] + scan * scans + _END_OF_IMAGE
