"""Made image files of all formats, depths, kinds of alpha, profiles and orientations; the same in every run of the tests."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from helpers.images.pictures import encode
from helpers.images.png_files import CHANNELS, GREY, GREY_ALPHA, PALETTE, RGB, RGBA, chunk, png
from helpers.images.profiles import grey_profile, profile

HEIGHT, WIDTH = 37, 53  # odd, so that the last blocks and the last subsampled columns are not full
_ORIENTATION, _LEAST, _MOST = 274, 340, 341
_UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions, inverse to those of a reader
_ADOBE, _P3, _GREY = profile("Adobe RGB", 2.2), profile("Display P3", 2.2), grey_profile(1.8)


def samples(channels: int) -> NDArray[np.uint16]:
    """Slopes, an edge and grain, of 16 bits: ``(height, width, channels)``; the second of two and the fourth are alpha."""
    rows, columns = np.linspace(0, 1, HEIGHT)[:, None], np.linspace(0, 1, WIDTH)[None, :]
    slopes = [rows + 0 * columns, columns + 0 * rows, 1 - (rows + columns) / 2, (1 + columns - rows) / 2]
    picture = np.stack(slopes[:channels] if channels != 2 else [slopes[2], slopes[1]], axis=-1)
    picture[8:20, 10:30] = 1 - picture[8:20, 10:30]
    grain = np.random.default_rng(3).normal(0, 0.02, picture.shape)
    return np.asarray((picture * 0.96 + 0.02 + grain).clip(0, 1) * 65535, np.uint16)


def picture(mode: str) -> Image.Image:
    """The samples as an image of Pillow, of a mode with up to four channels of 8 bits."""
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    return Image.frombytes(mode, (WIDTH, HEIGHT), (samples(channels) >> 8).astype(np.uint8).tobytes())


def corpus() -> Iterator[tuple[str, bytes]]:
    """Names and files. A name begins with its format; it is unique."""
    for make in (_jpeg, _png, _tiff, _tiff_by_hand, _bmp, _gif, _webp_and_avif, _jpeg2000_and_ppm, _turned):
        yield from make()


def _jpeg() -> Iterator[tuple[str, bytes]]:
    rgb, grey, cmyk = picture("RGB"), picture("L"), picture("CMYK")
    for name, subsampling in (("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)):
        for progressive in (False, True):
            kind = f"jpeg, {name}{', progressive' * progressive}"
            yield kind, encode(rgb, "JPEG", subsampling=subsampling, quality=90, progressive=progressive)
    yield "jpeg, of RGB", encode(rgb, "JPEG", keep_rgb=True)
    yield "jpeg, restarts", encode(rgb, "JPEG", restart_marker_blocks=2)
    yield "jpeg, grey", encode(grey, "JPEG")
    yield "jpeg, grey, progressive", encode(grey, "JPEG", progressive=True)
    yield "jpeg, grey, profile", encode(grey, "JPEG", icc_profile=_GREY)
    yield "jpeg, cmyk", encode(cmyk, "JPEG", quality=95)
    yield "jpeg, cmyk, profile", _in_cmyk(".jpg[Q=95]")
    yield "jpeg, ycck", _as_ycck(encode(cmyk, "JPEG", quality=95))
    yield "jpeg, Adobe RGB", encode(rgb, "JPEG", icc_profile=_ADOBE)
    yield "jpeg, Display P3", encode(rgb, "JPEG", icc_profile=_P3)
    yield "mpo", encode(rgb, "MPO", save_all=True, append_images=[rgb.transpose(Image.Transpose.ROTATE_180)])


def _as_ycck(cmyk: bytes) -> bytes:
    """The same samples, said to be Y, Cb, Cr and K by the marker of Adobe; Pillow writes no such file."""
    marker = cmyk.index(b"Adobe") + 11
    return cmyk[:marker] + b"\x02" + cmyk[marker + 1 :]


def _in_cmyk(suffix: str) -> bytes:
    """A file in CMYK with the profile that libvips brings along."""
    rgb = pyvips.Image.new_from_array((samples(3) >> 8).astype(np.uint8)).copy(interpretation="srgb")
    content: bytes = rgb.icc_transform("cmyk", input_profile="srgb").write_to_buffer(suffix)
    return content


def _png() -> Iterator[tuple[str, bytes]]:
    kinds = [(GREY, "grey", (1, 2, 4, 8, 16)), (GREY_ALPHA, "grey with alpha", (8, 16))]
    kinds += [(RGB, "rgb", (8, 16)), (RGBA, "rgba", (8, 16))]
    for kind, name, depths in kinds:
        for depth in depths:
            stored = samples(CHANNELS[kind]).astype(np.int64) >> (16 - depth)
            yield f"png, {name}, {depth} bits", png(stored, depth, kind)
            if kind in (GREY, RGB):
                transparent = struct.pack(f">{CHANNELS[kind]}H", *stored[5, 5])
                yield (
                    f"png, {name}, {depth} bits, transparent colour",
                    png(stored, depth, kind, chunk(b"tRNS", transparent)),
                )
    random = np.random.default_rng(4)
    for depth in (1, 2, 4, 8):
        stored = samples(1).astype(np.int64) >> (16 - depth)
        palette = chunk(b"PLTE", random.integers(0, 256, 3 << depth, np.uint8).tobytes())
        alpha = chunk(b"tRNS", random.integers(0, 256, 1 << depth, np.uint8).tobytes())
        yield f"png, palette, {depth} bits", png(stored, depth, PALETTE, palette)
        yield f"png, palette with alpha, {depth} bits", png(stored, depth, PALETTE, palette, alpha)
    yield "png, grey, profile", encode(picture("L"), "PNG", icc_profile=_GREY)
    yield "png, grey with alpha, profile", encode(picture("LA"), "PNG", icc_profile=_GREY)
    yield "png, grey, 16 bits, profile", encode(Image.fromarray(samples(1)[..., 0]), "PNG", icc_profile=_GREY)
    yield "png, palette, Adobe RGB", encode(picture("RGB").quantize(64), "PNG", icc_profile=_ADOBE)
    yield (
        "png, animated",
        encode(
            picture("RGB"),
            "PNG",
            save_all=True,
            append_images=[picture("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)],
        ),
    )
    yield "png, rgb, Adobe RGB", encode(picture("RGB"), "PNG", icc_profile=_ADOBE)
    yield "png, rgba, Adobe RGB", encode(picture("RGBA"), "PNG", icc_profile=_ADOBE)
    yield "png, interlaced", _vips(samples(3) >> 8, np.uint8, ".png[interlace]")
    yield "png, rgb, 16 bits, Adobe RGB", png(samples(3).astype(np.int64), 16, RGB, _icc_chunk(_ADOBE))


def _icc_chunk(icc: bytes) -> bytes:
    return chunk(b"iCCP", b"profile\0\0" + zlib.compress(icc))


def _vips(pixels: NDArray[np.integer[Any]], kind: type, suffix: str) -> bytes:
    """A file that libvips writes, for what Pillow does not."""
    content: bytes = pyvips.Image.new_from_array(pixels.astype(kind)).write_to_buffer(suffix)
    return content


def _tiff() -> Iterator[tuple[str, bytes]]:
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd"):
        yield f"tiff, rgb, {compression or 'plain'}", encode(picture("RGB"), "TIFF", compression=compression)
    yield "tiff, 1 bit, group 4", encode(picture("L").convert("1"), "TIFF", compression="group4")
    yield "tiff, palette", encode(picture("RGB").quantize(64), "TIFF")
    yield "tiff, grey", encode(picture("L"), "TIFF")
    yield "tiff, cmyk", encode(picture("CMYK"), "TIFF", compression="tiff_lzw")
    for mode, icc in (("RGBA", _ADOBE), ("LA", _GREY)):
        yield f"tiff, {mode.lower()}, profile", encode(picture(mode), "TIFF", icc_profile=icc)
    yield "tiff, grey, 16 bits, profile", encode(Image.fromarray(samples(1)[..., 0]), "TIFF", icc_profile=_GREY)
    yield "tiff, cmyk, profile", _in_cmyk(".tif")
    yield "tiff, Adobe RGB", encode(picture("RGB"), "TIFF", icc_profile=_ADOBE)
    yield "tiff, BigTIFF", encode(picture("RGB"), "TIFF", big_tiff=True)
    yield "tiff, tiles", _vips(samples(3) >> 8, np.uint8, ".tif[tile,tile-width=16,tile-height=16,compression=deflate]")
    yield "tiff, pyramid", _vips(samples(3) >> 8, np.uint8, ".tif[tile,tile-width=16,tile-height=16,pyramid]")
    yield "tiff, predictor", _vips(samples(3) >> 8, np.uint8, ".tif[compression=lzw,predictor=horizontal]")
    yield "tiff, grey, 16 bits", encode(Image.fromarray(samples(1)[..., 0]), "TIFF")
    yield "tiff, rgb, 16 bits", _vips(samples(3), np.uint16, ".tif")
    yield "tiff, rgba, 16 bits", _vips(samples(4), np.uint16, ".tif")
    yield (
        "tiff, rgb, 16 bits, lzw, predictor",
        _vips(samples(3), np.uint16, ".tif[compression=lzw,predictor=horizontal]"),
    )
    floats = samples(1)[..., 0].astype(np.float32) / np.float32(65535)
    yield "tiff, floats with tags", encode(Image.fromarray(floats), "TIFF", tiffinfo={_LEAST: 0.0, _MOST: 1.0})


def _tiff_by_hand() -> Iterator[tuple[str, bytes]]:
    """Kinds of samples that Pillow does not write, in both orders of bytes."""
    straight, premultiplied = samples(4), samples(4)
    premultiplied[..., :3] = premultiplied[..., :3] * (premultiplied[..., 3:] / 65535)
    kinds: list[tuple[str, int, NDArray[np.uint16], int | None]]
    kinds = [("grey", 1, samples(1), None), ("grey, white is zero", 0, samples(1), None), ("rgb", 2, samples(3), None)]
    kinds += [("fourth channel", 2, straight, 0), ("straight alpha", 2, straight, 2), ("cmyk", 5, straight, None)]
    kinds += [("premultiplied alpha", 2, premultiplied, 1)]
    for order, sign in (("II", "<"), ("MM", ">")):
        for name, photometric, stored, extra in kinds:
            for bits in (8, 16):
                if (name, order, bits) != ("grey, white is zero", "MM", 16):  # Pillow knows no such kind of pixels
                    data = (stored >> 8).astype("u1") if bits == 8 else stored.astype(sign + "u2")
                    content = _tiff_of(data.tobytes(), bits, stored.shape[2], photometric, order=sign, extra=extra)
                    yield f"tiff, {order}, {name}, {bits} bits", content
    grey_alpha = samples(2) >> 8
    for name, extra in (("second channel", 0), ("grey with straight alpha", 2)):
        yield f"tiff, II, {name}, 8 bits", _tiff_of(grey_alpha.astype("u1").tobytes(), 8, 2, 1, extra=extra)
    for bits in (1, 2, 4):
        levels = np.pad((samples(1)[..., 0] >> (16 - bits)).astype(np.uint8), ((0, 0), (0, -WIDTH % (8 // bits))))
        packed = np.packbits((levels[..., None] >> np.arange(bits - 1, -1, -1)) & 1, axis=None)
        for name, photometric in (("grey", 1), ("grey, white is zero", 0)):
            yield f"tiff, II, {name}, {bits} bits", _tiff_of(packed.tobytes(), bits, 1, photometric)


def _tiff_of(
    data: bytes, bits: int, channels: int, photometric: int, *, order: str = "<", extra: int | None = None
) -> bytes:
    """A TIFF of one strip; the channels of a pixel lie together."""
    tags: dict[int, tuple[str, list[int]]] = {256: ("H", [WIDTH]), 257: ("H", [HEIGHT]), 258: ("H", [bits] * channels)}
    tags |= {259: ("H", [1]), 262: ("H", [photometric]), 273: ("I", [0]), 277: ("H", [channels]), 278: ("H", [HEIGHT])}
    tags |= {279: ("I", [len(data)])} | ({} if extra is None else {338: ("H", [extra])})
    start = 8 + 2 + 12 * len(tags) + 4
    depths = struct.pack(f"{order}{channels}H", *tags[258][1]) if channels > 2 else b""
    tags[273] = ("I", [start + len(depths)])
    entries = b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        value = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(order + "I", start)
        entries += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + value
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8) + struct.pack(order + "H", len(tags))
    return head + entries + bytes(4) + depths + data


def _bmp() -> Iterator[tuple[str, bytes]]:
    for name, image in (("rgb", picture("RGB")), ("rgba", picture("RGBA")), ("grey", picture("L"))):
        yield f"bmp, {name}", encode(image, "BMP")
    yield "bmp, palette", encode(picture("RGB").quantize(64), "BMP")
    yield "bmp, 1 bit", encode(picture("L").convert("1"), "BMP")
    rgb, rgba = samples(3).astype(np.uint32), samples(4).astype(np.uint32) >> 8
    words = rgb[..., 0] >> 11 << 11 | rgb[..., 1] >> 10 << 5 | rgb[..., 2] >> 11
    yield "bmp, 16 bits, 5-6-5", _bmp_of(words.astype("<u2"), struct.pack("<III", 0xF800, 0x7E0, 0x1F))
    words = rgb[..., 0] >> 11 << 10 | rgb[..., 1] >> 11 << 5 | rgb[..., 2] >> 11
    yield "bmp, 16 bits, 5-5-5", _bmp_of(words.astype("<u2"))
    words = rgba[..., 3] << 24 | rgba[..., 0] << 16 | rgba[..., 1] << 8 | rgba[..., 2]
    yield "bmp, 32 bits", _bmp_of(words.astype("<u4") & 0xFFFFFF)
    yield "bmp, 32 bits, from above", _bmp_of(words.astype("<u4") & 0xFFFFFF, from_above=True)
    rows = (samples(3)[::-1, :, ::-1] >> 8).astype(np.uint8).reshape(HEIGHT, -1)
    body = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()
    header = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    yield "bmp, of OS/2", struct.pack("<2sIHHI", b"BM", 26 + len(body), 0, 0, 26) + header + body


def _bmp_of(words: NDArray[np.generic], masks: bytes = b"", *, from_above: bool = False) -> bytes:
    """A BMP of words of 2 or 4 bytes; without masks it has five or eight bits for each colour."""
    rows = (words if from_above else words[::-1]).copy().view(np.uint8).reshape(HEIGHT, -1)
    body = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()
    height, kind = -HEIGHT if from_above else HEIGHT, 3 if masks else 0
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, height, 1, 8 * words.itemsize, kind, len(body), 0, 0, 0, 0)
    start = 14 + len(header) + len(masks)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + header + masks + body


def _gif() -> Iterator[tuple[str, bytes]]:
    palette = picture("RGB").quantize(64)
    yield "gif", encode(palette, "GIF")
    yield "gif, transparent", encode(palette, "GIF", transparency=3)
    yield "gif, interlaced", encode(palette, "GIF", interlace=1)
    yield "gif, animated", encode(palette, "GIF", save_all=True, append_images=[picture("RGB").quantize(8)])
    for name, options in (("", {}), (", transparent", {"transparency": 3})):
        content = encode(palette, "GIF", **options)
        yield f"gif, larger screen{name}", content[:6] + struct.pack("<HH", WIDTH + 9, HEIGHT + 5) + content[10:]


def _webp_and_avif() -> Iterator[tuple[str, bytes]]:
    for mode in ("RGB", "RGBA"):
        yield f"webp, lossy, {mode.lower()}", encode(picture(mode), "WEBP", quality=90)
        yield f"webp, lossless, {mode.lower()}", encode(picture(mode), "WEBP", lossless=True, exact=True)
        for subsampling in ("4:4:4", "4:2:0"):
            name = f"avif, {mode.lower()}, {subsampling}"
            yield name, encode(picture(mode), "AVIF", quality=90, subsampling=subsampling)
    yield "webp, Adobe RGB", encode(picture("RGB"), "WEBP", lossless=True, icc_profile=_ADOBE)
    yield "webp, rgba, Adobe RGB", encode(picture("RGBA"), "WEBP", lossless=True, exact=True, icc_profile=_ADOBE)
    yield "webp, animated", encode(picture("RGB"), "WEBP", lossless=True, save_all=True, append_images=[picture("L")])
    yield "avif, grey", encode(picture("L"), "AVIF", quality=90)
    yield "avif, Adobe RGB", encode(picture("RGB"), "AVIF", quality=90, subsampling="4:4:4", icc_profile=_ADOBE)
    options: dict[str, object] = {"quality": 90, "subsampling": "4:4:4", "icc_profile": _ADOBE}
    yield "avif, rgba, Adobe RGB", encode(picture("RGBA"), "AVIF", **options)
    for bits in (10, 12):
        yield f"avif, {bits} bits", _vips(samples(3) >> 8, np.uint8, f".avif[bitdepth={bits},Q=90,subsample-mode=off]")
    yield "avif, quality 100", encode(picture("RGB"), "AVIF", quality=100, subsampling="4:4:4")


def _jpeg2000_and_ppm() -> Iterator[tuple[str, bytes]]:
    for mode in ("L", "RGB", "RGBA", "LA"):
        yield f"jpeg 2000, {mode.lower()}", encode(picture(mode), "JPEG2000")
    yield "jpeg 2000, lossy", encode(picture("RGB"), "JPEG2000", irreversible=True, quality_layers=[20])
    yield "jpeg 2000, codestream", encode(picture("RGB"), "JPEG2000", no_jp2=True)
    yield "jpeg 2000, grey, 16 bits", encode(Image.fromarray(samples(1)[..., 0]), "JPEG2000")
    yield "ppm", encode(picture("RGB"), "PPM")
    yield "pgm", encode(picture("L"), "PPM")
    yield "pbm", encode(picture("L").convert("1"), "PPM")
    size = f"{WIDTH} {HEIGHT}\n"
    plain = "\n".join(" ".join(map(str, row)) for row in (samples(1)[..., 0] >> 8).tolist())
    yield "pgm, plain", f"P2\n# words\n{size}255\n{plain}\n".encode()
    yield "pgm, 16 bits", f"P5 {size}65535\n".encode() + samples(1).astype(">u2").tobytes()
    yield "ppm, 16 bits", f"P6 {size}65535\n".encode() + samples(3).astype(">u2").tobytes()
    yield "pgm, white at 100", f"P5 {size}100\n".encode() + (samples(1) // 656).astype(np.uint8).tobytes()


def _turned() -> Iterator[tuple[str, bytes]]:
    formats: dict[str, dict[str, object]] = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
    formats |= {"AVIF": {"quality": 90, "subsampling": "4:4:4"}}
    for orientation in range(1, 9):
        stored = picture("RGB") if orientation == 1 else picture("RGB").transpose(Image.Transpose(_UNDO[orientation]))
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        for format, options in formats.items():
            yield f"{format.lower()}, orientation {orientation}", encode(stored, format, exif=exif, **options)
