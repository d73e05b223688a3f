"""The precision of the forward pass: bfloat16 where the processor supports it and the network keeps its features."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featurize.decoding.decode import decode_image
from featurize.sources.scenes import SCENE_CLASSES, draw_scene, encode_scene

Precision = Literal["float32", "bfloat16", "int8"]
Forward = Callable[[NDArray[np.uint8]], NDArray[Any]]

MIN_COSINE = 0.999
"""Mean cosine between features in bfloat16 and in float32 from which "auto" chooses bfloat16."""
_PROBE_IMAGES = 16
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
_CAPS = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")
"""Parts of the values of ONEDNN_MAX_CPU_ISA that leave oneDNN its bfloat16."""


def has_bfloat16() -> bool:
    """Whether TensorFlow multiplies in bfloat16 here.

    That takes a processor with such instructions (known on Linux only), and oneDNN, which TF_ENABLE_ONEDNN_OPTS=0 switches off
    and ONEDNN_MAX_CPU_ISA may keep from using newer instructions.
    """
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    is_off = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() in ("0", "false")
    if is_off or not any(part in cap for part in _CAPS):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(name in flags for name in _INSTRUCTIONS)


def choose_precision(make: Callable[[Precision], Forward], *, height: int, width: int) -> tuple[Precision, float]:
    """The precision that "auto" chooses on a processor with bfloat16, and the mean cosine that was measured.

    The network runs once in each precision on the same few drawn scenes. Deep networks of narrow layers (MobileNet) lose more
    in bfloat16 than wide ones (VGG16), so the type of processor alone does not decide.

    Args:
        make: Makes the forward pass for a precision.
        height: Height of the network's input, in pixels.
        width: Width of the network's input, in pixels.
    """
    images = probe_images(height=height, width=width)
    cosine = mean_cosine(make("float32")(images), make("bfloat16")(images))
    return ("bfloat16" if cosine >= MIN_COSINE else "float32"), round(cosine, 6)


def probe_images(*, height: int, width: int) -> NDArray[np.uint8]:
    """Drawn scenes of all classes, always the same: ``uint8 (16, height, width, 3)``."""
    kinds = len(SCENE_CLASSES)
    scenes = (encode_scene(draw_scene(SCENE_CLASSES[i % kinds], seed=0, index=i)) for i in range(_PROBE_IMAGES))
    return np.stack([decode_image(scene, height=height, width=width) for scene in scenes])


def mean_cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean over images of the cosine between features, each ``(n_images, feature_dim)``; two rows of zeros count as equal."""
    products = np.sum(one * other, axis=1, dtype=np.float64)
    norms = np.linalg.norm(one.astype(np.float64), axis=1) * np.linalg.norm(other.astype(np.float64), axis=1)
    both_zero = ~(one.any(axis=1) | other.any(axis=1))
    return float(np.mean(np.where(both_zero, 1.0, products / np.where(norms > 0, norms, 1.0))))
