"""Tests of featurize.backbones.precision: what "auto" comes to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurize.engines.precision import MIN_COSINE, choose_precision, has_bfloat16, mean_cosine, probe_images


def make_fake(noise: float) -> Callable[[str], Callable[[NDArray[np.uint8]], NDArray[Any]]]:
    """A network of mean pixels whose features in bfloat16 are off by `noise`."""

    def make(precision: str) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
        def forward(images: NDArray[np.uint8]) -> NDArray[Any]:
            features = images.reshape(len(images), 64, -1).mean(2)
            random = np.random.default_rng(0).normal(0, noise * features.mean(), features.shape)
            return np.asarray(features + (random if precision == "bfloat16" else 0), np.float32)

        return forward

    return make


@pytest.mark.parametrize(("noise", "expected"), [(0.001, "bfloat16"), (0.3, "float32")])
def test_auto_is_bfloat16_only_where_the_features_stay(noise: float, expected: str) -> None:
    precision, cosine = choose_precision(make_fake(noise), height=32, width=32)
    assert precision == expected
    assert (cosine >= MIN_COSINE) == (expected == "bfloat16")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TF_ENABLE_ONEDNN_OPTS", "0"),
        ("TF_ENABLE_ONEDNN_OPTS", "false"),
        ("ONEDNN_MAX_CPU_ISA", "AVX2"),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core_vnni"),
    ],
)
def test_there_is_no_bfloat16_where_onednn_is_kept_from_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not has_bfloat16()


@pytest.mark.parametrize("cap", ["AVX512_CORE_BF16", "AVX512_CORE_AMX", "ALL"])
def test_a_cap_that_leaves_bfloat16_changes_nothing(monkeypatch: pytest.MonkeyPatch, cap: str) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    plain = has_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert has_bfloat16() == plain


def test_mean_cosine_of_known_rows() -> None:
    one = np.array([[1, 0], [1, 1], [0, 0], [0, 0]], np.float32)
    other = np.array([[1, 0], [1, -1], [0, 0], [1, 0]], np.float32)
    assert mean_cosine(one, other) == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_probe_images_are_the_same_every_time_and_of_the_wanted_size() -> None:
    images = probe_images(height=48, width=40)
    assert images.shape == (16, 48, 40, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, probe_images(height=48, width=40))
