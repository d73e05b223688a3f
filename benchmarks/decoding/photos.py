"""How fast Pillow, which Firn decodes with, decodes photographs beside simplejpeg and OpenCV, and whether the pixels are equal.

    uv pip install simplejpeg
    python benchmarks/decoding/photos.py /data/objects --images 200

JPEG files at their full size and at 1/2, 1/4 and 1/8 (Pillow's `draft`), and the same pictures as PNG. Each way ends in an image
of Pillow, which is then resized to 224 x 224, as Firn resizes it. All take turns on each picture, on one core, several times;
the shortest time of each counts. `firn` is `decode_image` itself, to that size.

Prints one JSON object for each kind of decoding: milliseconds of processor time for a picture, decoded, and resized too; both in
units of Pillow's; over all pictures the share with equal pixels and the largest difference.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.images import image_files, spread
from featurize.decoding.decode import decode_image

Way = Callable[[bytes], Image.Image]
_SIDE = 224


def ways(scale: int, *, is_jpeg: bool) -> dict[str, Way]:
    """The decoders of a JPEG at a part of its size, or of a PNG."""
    import cv2

    cv2.setNumThreads(1)
    flags = {
        1: cv2.IMREAD_COLOR_RGB,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }

    def by_pillow(content: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(content))
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        return image.convert("RGB")

    def by_opencv(content: bytes) -> Image.Image:
        found = cv2.imdecode(np.frombuffer(content, np.uint8), flags[scale] | cv2.IMREAD_IGNORE_ORIENTATION)
        return _image(found if scale == 1 else cv2.cvtColor(found, cv2.COLOR_BGR2RGB))

    def by_simplejpeg(content: bytes) -> Image.Image:
        import simplejpeg

        if scale == 1:
            return _image(simplejpeg.decode_jpeg(content, "RGB"))
        height, width, _, _ = simplejpeg.decode_jpeg_header(content)
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale), "min_factor": 1}
        return _image(simplejpeg.decode_jpeg(content, "RGB", **least))

    found: dict[str, Way] = {"pillow": by_pillow, "opencv": by_opencv}
    return found | ({"simplejpeg": by_simplejpeg} if is_jpeg else {})


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    height, width, _ = pixels.shape
    return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)


def measure(files: Sequence[bytes], scale: int, *, is_jpeg: bool, repeats: int) -> dict[str, Any]:
    """Milliseconds, ratios and equality over the files."""
    decoders = ways(scale, is_jpeg=is_jpeg)
    names = [*decoders, "firn"]
    decoded, resized = dict.fromkeys(decoders, 0.0), dict.fromkeys(names, 0.0)
    differences: dict[str, list[int]] = {name: [] for name in decoders}
    for index, content in enumerate(files):
        best, whole = dict.fromkeys(decoders, float("inf")), dict.fromkeys(names, float("inf"))
        for turn in range(repeats):
            start = (index + turn) % len(names)
            for name in names[start:] + names[:start]:
                began = process_time()
                if name == "firn":
                    decode_image(content, height=_SIDE, width=_SIDE)
                else:
                    image = decoders[name](content)
                    best[name] = min(best[name], process_time() - began)
                    np.array(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
                whole[name] = min(whole[name], process_time() - began)
        wanted = np.asarray(decoders["pillow"](content), np.int16)
        for name, decode in decoders.items():
            found = np.asarray(decode(content), np.int16)
            differences[name].append(int(np.abs(found - wanted).max()) if found.shape == wanted.shape else 255)
            decoded[name] += best[name]
        for name in names:
            resized[name] += whole[name]
    return {
        "kind": f"jpeg, 1/{scale}" if is_jpeg else "png",
        "images": len(files),
        "decoded_ms": {name: round(1000 * taken / len(files), 3) for name, taken in decoded.items()},
        "resized_ms": {name: round(1000 * taken / len(files), 3) for name, taken in resized.items()},
        "decoded_of_pillow": {name: round(taken / decoded["pillow"], 3) for name, taken in decoded.items()},
        "resized_of_pillow": {name: round(taken / resized["pillow"], 3) for name, taken in resized.items()},
        "equal": {name: found.count(0) / len(files) for name, found in differences.items()},
        "largest_difference": {name: max(found) for name, found in differences.items()},
    }


def as_png(content: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", help="JPEG files in a folder per class; default: objects in FIRN_TEST_DATA"
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(os.environ["FIRN_TEST_DATA"]) / "objects"
    paths = [path for path in image_files(folder) if path.suffix.lower() in (".jpg", ".jpeg")]
    jpegs = [path.read_bytes() for path in spread(paths, arguments.images)]
    for scale in (1, 2, 4, 8):
        print(json.dumps(measure(jpegs, scale, is_jpeg=True, repeats=arguments.repeats)))
    print(json.dumps(measure([as_png(content) for content in jpegs], 1, is_jpeg=False, repeats=arguments.repeats)))


if __name__ == "__main__":
    main()
