"""Where other decoders give other pixels than Firn, and why: one table, which docs/formats.md shows; for the tests."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from featurize.decoding.decode import Color

UNEXPLAINED = 2.0
"""Levels of 255 that need no explanation: two ways of rounding, one after the other."""
LIBVIPS, OPENCV = "libvips", "OpenCV"


@dataclass(frozen=True)
class Difference:
    """One explanation.

    Attributes:
        decoder: the other decoder.
        files: what the files have in common, for a reader.
        names: patterns of the names of these files in the corpus; each of them differs by more than `UNEXPLAINED`.
        most: the largest difference in levels of 255, rounded up; None: the other decoder does not read them.
        why: what the other decoder does.
        color: where it counts, if not for both.
    """

    decoder: str
    files: str
    names: tuple[str, ...]
    most: int | None
    why: str
    color: Color | None = None

    def is_about(self, name: str, decoder: str, color: Color) -> bool:
        known = any(fnmatchcase(name, pattern) for pattern in self.names)
        return known and decoder == self.decoder and self.color in (None, color)


EXPLAINED = (
    Difference(
        LIBVIPS,
        "BMP, PBM, PGM, PPM, JPEG 2000",
        ("bmp*", "pbm*", "pgm*", "ppm*", "jpeg 2000*"),
        None,
        "`pyvips-binary` is built without a decoder",
    ),
    Difference(LIBVIPS, "TIFF, zstd", ("tiff, rgb, zstd",), None, "it is built without zstd"),
    Difference(
        LIBVIPS,
        "CMYK without a profile",
        ("jpeg, cmyk", "jpeg, ycck", "tiff, cmyk", "tiff, ??, cmyk, *"),
        102,
        "it converts by a profile of its own, Firn by a formula",
    ),
    Difference(
        LIBVIPS,
        "CMYK with a profile, `raw`",
        ("*, cmyk, profile",),
        127,
        "it uses the profile all the same, Firn the formula",
        "raw",
    ),
    Difference(
        LIBVIPS,
        "PNG, RGB of 16 bits with a profile",
        ("png, rgb, 16 bits, Adobe RGB",),
        14,
        "it converts 16 bits, Firn the 8 bits to which Pillow reduces them; dark, saturated colours show it",
        "srgb",
    ),
    Difference(
        LIBVIPS,
        "TIFF, a channel more that is not said to be alpha",
        ("tiff, ??, fourth channel, *", "tiff, II, second channel, *"),
        251,
        "it takes every such channel for alpha",
    ),
    Difference(
        LIBVIPS,
        "GIF whose screen is larger than its picture",
        ("gif, larger screen",),
        255,
        "it shows black around the picture, Firn white, as behind a transparent one",
    ),
    Difference(
        LIBVIPS,
        "AVIF, 4:2:0",
        ("avif, rgb*, 4:2:0",),
        110,
        "it repeats samples of colour, Firn's decoder interpolates between them",
    ),
    Difference(
        LIBVIPS,
        "AVIF with a profile",
        ("avif, *Adobe RGB",),
        16,
        "the samples differ by 1, which the conversion of dark, saturated colours magnifies",
        "srgb",
    ),
    Difference(
        LIBVIPS,
        "AVIF of 10 and 12 bits",
        ("avif, 1? bits",),
        3,
        "both reduce them to 8 bits; on average Firn's decoder comes out lower by half a level in red and blue",
    ),
    Difference(OPENCV, "GIF, AVIF", ("gif*", "avif*"), None, "it is built without a decoder"),
    Difference(OPENCV, "TIFF, zstd", ("tiff, rgb, zstd",), None, "it is built without zstd"),
    Difference(
        OPENCV,
        "TIFF, 2 or 4 bits; CMYK of 16 bits; uncompressed tiles of 16 pixels with a pyramid",
        ("tiff, II, grey*, 2 bits", "tiff, II, grey*, 4 bits", "tiff, ??, cmyk, 16 bits", "tiff, pyramid"),
        None,
        "it refuses them",
    ),
    Difference(OPENCV, "JPEG 2000, grey with alpha", ("jpeg 2000, la",), None, "it refuses two channels"),
    Difference(
        OPENCV,
        "PNG, grey with a transparent colour",
        ("png, grey, * bits, transparent colour",),
        255,
        "it ignores the transparent colour",
    ),
    Difference(
        OPENCV,
        "TIFF of 8 bits with straight alpha",
        ("tiff, ??, straight alpha, 8 bits", "tiff, rgba, profile"),
        64,
        "its colours are multiplied by alpha, as libtiff's simple interface gives them, and are laid over white as if not",
    ),
    Difference(
        OPENCV,
        "TIFF with premultiplied alpha",
        ("tiff, ??, premultiplied alpha, *",),
        64,
        "its colours are as stored, and are laid over white as if they were straight",
    ),
    Difference(
        OPENCV,
        "TIFF, a fourth channel that is not said to be alpha",
        ("tiff, ??, fourth channel, *",),
        251,
        "it takes it for alpha",
    ),
    Difference(
        OPENCV,
        "TIFF, grey with alpha",
        ("tiff, la, profile", "tiff, II, grey with straight alpha, *"),
        132,
        "it drops alpha",
    ),
    Difference(
        OPENCV,
        "TIFF, grey of 16 bits with white as zero",
        ("tiff, II, grey, white is zero, 16 bits",),
        255,
        "it gives the negative",
    ),
    Difference(
        OPENCV,
        "BMP of 16 bits",
        ("bmp, 16 bits, *",),
        7,
        "its white is 248: it shifts five bits, where Firn scales 31 to 255",
    ),
    Difference(OPENCV, "BMP of OS/2", ("bmp, of OS/2",), 221, "it reads it as grey"),
    Difference(OPENCV, "PGM whose white is 100", ("pgm, white at 100",), 153, "it does not scale 100 to 255"),
    Difference(
        OPENCV,
        "WebP with an orientation",
        ("webp, orientation [2-8]",),
        255,
        "it does not turn it upright",
    ),
)


def rows() -> Iterator[str]:
    """The table as lines of Markdown."""
    yield "| files | other decoder | differs by | why |"
    yield "|---|---|---|---|"
    for entry in EXPLAINED:
        by = "not read" if entry.most is None else str(entry.most)
        yield f"| {entry.files} | {entry.decoder} | {by} | {entry.why} |"
