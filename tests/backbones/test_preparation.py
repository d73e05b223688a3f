"""How a network wants its images, read from the files of Hugging Face and timm: the pixels of the processors that wrote them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images.pictures import encode
from numpy.typing import NDArray
from PIL import Image

from featurize.backbones.preparation import (
    Preparation,
    from_huggingface,
    from_timm,
    read_preparation,
)
from featurize.decoding.decode import Fit, decode_image
from featurize.engines.onnx_graph import Normalization
from featurize.errors import UsageError

os.environ.setdefault("USE_TF", "0")  # transformers would import TensorFlow, which its processors of images do not need
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIP": ("CLIPImageProcessor", {}),
    "CLIP, not square": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 97}, "crop_size": {"height": 64, "width": 97}},
    ),
    "CLIP, stretched and cropped": (
        "CLIPImageProcessor",
        {"size": {"height": 80, "width": 91}, "crop_size": {"height": 63, "width": 64}},
    ),
    "ViT": ("ViTImageProcessor", {}),
    "ViT, not square": ("ViTImageProcessor", {"size": {"height": 60, "width": 101}, "resample": 3, **IMAGENET}),
    "DeiT": ("DeiTImageProcessor", {}),
    "BEiT": ("BeitImageProcessor", {}),
    "DINOv2": ("BitImageProcessor", {"size": {"shortest_edge": 256}, "resample": 3, **IMAGENET}),
    "ConvNeXt, cropped": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    "ConvNeXt, small": ("ConvNextImageProcessor", {"size": {"shortest_edge": 77}, "crop_pct": 0.9, "resample": 3}),
    "ConvNeXt, whole": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "crop_pct": 1.0}),
    "SigLIP": ("SiglipImageProcessor", {"size": {"height": 256, "width": 256}, "image_mean": [0.5] * 3}),
    "BLIP": ("BlipImageProcessor", {"size": {"height": 96, "width": 96}}),
    "MobileNetV1": ("MobileNetV1ImageProcessor", {}),
    "MobileNetV2": ("MobileNetV2ImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": 53}),
    "no normalization": ("ViTImageProcessor", {"do_normalize": False, "size": {"height": 33, "width": 33}}),
    "no rescaling": ("ViTImageProcessor", {"do_rescale": False, "size": {"height": 33, "width": 33}}),
}
SIZES = ((300, 401), (401, 300), (97, 331), (500, 223), (224, 224), (45, 37), (33, 33), (256, 257))
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
    **IMAGENET,
}
VIT = {
    **{key: value for key, value in CLIP.items() if key not in ("do_center_crop", "crop_size")},
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 224, "width": 192},
    "resample": 2,
}
CONVNEXT = {**VIT, "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875}
TIMM: dict[str, Any] = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": IMAGENET["image_mean"],
    "std": IMAGENET["image_std"],
}
TORCH = Normalization(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILE = "models/clip/preprocessor_config.json"


def photo(height: int, width: int) -> Image.Image:
    """Smooth colours with noise: every filter gives other pixels."""
    random = np.random.default_rng(height * 1000 + width)
    coarse = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse, np.int16) + random.integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def prepared(image: Image.Image, preparation: Preparation) -> NDArray[np.float32]:
    """What a network is given."""
    height, width = preparation.size
    assert height is not None
    assert width is not None
    pixels = decode_image(encode(image, "PNG"), height=height, width=width, fit=preparation.fit)
    images: NDArray[np.float32] = preparation.normalization.apply(pixels.astype(np.float32))
    return images


# The same pixels


@pytest.mark.parametrize("name", PROCESSORS)
def test_networks_are_given_what_the_processor_of_transformers_gives_them(name: str, tmp_path: Path) -> None:
    import transformers

    kind, changes = PROCESSORS[name]
    processor = getattr(transformers, kind)(**changes)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    preparation = read_preparation(str(tmp_path))
    for height, width in SIZES:
        image = photo(height, width)
        expected = processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
        ours = prepared(image, preparation)
        level = preparation.normalization.scale * max(1 / np.array(preparation.normalization.std))
        np.testing.assert_allclose(ours, expected.transpose(1, 2, 0), rtol=0, atol=level / 100)  # of one of 255 levels


@pytest.mark.parametrize(
    ("kind", "changes", "size"),
    [
        ("CLIP", {"crop_size": 48}, 64),
        ("Bit", {"crop_size": 48}, 64),
        ("MobileNetV1", {"crop_size": 48}, 64),
        ("MobileNetV2", {"crop_size": 48}, 64),
        ("ConvNext", {"crop_pct": 0.8}, 64),
        ("ViT", {}, 64),
        ("DeiT", {"crop_size": 48}, 64),
        ("Beit", {"do_center_crop": True, "crop_size": 48}, 64),
        ("Siglip", {}, {"height": 64, "width": 64}),
        ("Blip", {}, 64),
    ],
)
def test_one_number_means_what_it_does_to_each_kind_of_processor(kind: str, changes: dict[str, Any], size: Any) -> None:
    import transformers

    processor = getattr(transformers, f"{kind}ImageProcessor")(size=size, resample=2, **changes)
    config = {**processor.to_dict(), "size": 64, **changes}  # as files of old versions have it
    for ending in ("ImageProcessor", "ImageProcessorFast", "FeatureExtractor"):
        key = "feature_extractor_type" if ending == "FeatureExtractor" else "image_processor_type"
        preparation = from_huggingface({**without(config, "image_processor_type"), key: kind + ending}, origin=FILE)
        for height, width in ((100, 71), (71, 100)):
            image = photo(height, width)
            expected = processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
            np.testing.assert_allclose(prepared(image, preparation), expected.transpose(1, 2, 0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [(224, 0.9, "bicubic"), (224, 0.875, "bilinear"), (97, 0.95, "bicubic"), (63, 1.0, "nearest"), (64, 1, "lanczos")],
)
def test_timms_networks_are_given_pillows_resize_and_torchvisions_crop(
    crop_mode: str, size: int, crop_pct: float, interpolation: str
) -> None:
    config = {**TIMM, "input_size": [3, size, size], "crop_pct": crop_pct, "crop_mode": crop_mode}
    preparation = from_timm({**config, "interpolation": interpolation}, origin=FILE)
    scaled = int(size / crop_pct)
    for height, width in SIZES:
        image = photo(height, width)
        short = min(height, width)
        wide, tall = (int(scaled * side / short) if crop_mode == "center" else scaled for side in (width, height))
        resized = np.asarray(image.resize((wide, tall), Image.Resampling[interpolation.upper()]))
        top, left = round((tall - size) / 2.0), round((wide - size) / 2.0)
        cropped = resized[top : top + size, left : left + size] / np.float32(255)
        expected = (cropped - np.float32(TIMM["mean"])) / np.float32(TIMM["std"])
        np.testing.assert_allclose(prepared(image, preparation), expected, rtol=0, atol=1e-5)


# What the files say


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CLIP, Preparation(Fit(224, "bicubic"), TORCH, 224, 224)),
        ({**CLIP, "size": 256, "crop_size": 224}, Preparation(Fit(256, "bicubic"), TORCH, 224, 224)),
        (without(CLIP, "image_processor_type"), Preparation(Fit(224, "bicubic"), TORCH, 224, 224)),
        (without(CLIP, "rescale_factor", "do_rescale"), Preparation(Fit(224, "bicubic"), TORCH, 224, 224)),
        (
            {**CLIP, "size": {"shortest_edge": 224, "longest_edge": None}},
            Preparation(Fit(224, "bicubic"), TORCH, 224, 224),
        ),
        (VIT, Preparation(Fit((224, 192), "bilinear"), TORCH, 224, 192)),
        ({**VIT, "size": 224, "do_center_crop": None}, Preparation(Fit((224, 224), "bilinear"), TORCH, 224, 224)),
        (CONVNEXT, Preparation(Fit(256, "bilinear"), TORCH, 224, 224)),
        ({**CONVNEXT, "size": 288, "crop_pct": 1}, Preparation(Fit(288, "bilinear"), TORCH, 288, 288)),
        ({**CONVNEXT, "size": {"shortest_edge": 384}}, Preparation(Fit((384, 384), "bilinear"), TORCH, 384, 384)),
        (without({**CONVNEXT, "size": 512}, "crop_pct"), Preparation(Fit((512, 512), "bilinear"), TORCH, 512, 512)),
        (
            {**without(VIT, "image_mean"), "do_normalize": False},
            Preparation(Fit((224, 192), "bilinear"), Normalization(1 / 255), 224, 192),
        ),
        (
            {**VIT, "do_rescale": False, "rescale_factor": None},
            Preparation(Fit((224, 192), "bilinear"), Normalization(1.0, TORCH.mean, TORCH.std), 224, 192),
        ),
        (
            {**VIT, "rescale_factor": 1 / 127.5},
            Preparation(Fit((224, 192), "bilinear"), Normalization(1 / 127.5, TORCH.mean, TORCH.std), 224, 192),
        ),
    ],
)
def test_the_fields_of_huggingface_become_a_preparation(config: dict[str, Any], expected: Preparation) -> None:
    assert from_huggingface(config, origin=FILE) == expected


@pytest.mark.parametrize(
    ("changes", "fit", "size"),
    [
        ({}, Fit(248, "bicubic", "round"), (224, 224)),
        ({"crop_mode": None}, Fit(248, "bicubic", "round"), (224, 224)),
        ({"crop_pct": 1.0, "interpolation": "bilinear"}, Fit(224, "bilinear", "round"), (224, 224)),
        ({"crop_mode": "squash"}, Fit((248, 248), "bicubic", "round"), (224, 224)),
        ({"crop_mode": "squash", "input_size": [3, 90, 180]}, Fit((100, 200), "bicubic", "round"), (90, 180)),
    ],
)
def test_the_fields_of_timm_become_a_preparation(changes: dict[str, Any], fit: Fit, size: tuple[int, int]) -> None:
    assert from_timm({**TIMM, **changes}, origin=FILE) == Preparation(fit, TORCH, *size)


@pytest.mark.parametrize(
    ("config", "changes", "field"),
    [
        (CLIP, {"size": 0}, "size"),
        (CLIP, {"size": True}, "size"),
        (CLIP, {"size": "224"}, "size"),
        (CLIP, {"size": [224, 224]}, "size"),
        (CLIP, {"size": {"shortest_edge": -5}}, "size"),
        (CLIP, {"size": {"shortest_edge": 10**9}}, "size"),
        (CLIP, {"size": {"shortest_edge": 224, "longest_edge": 500}}, "size"),
        (CLIP, {"size": {"longest_edge": 500}}, "size"),
        (CLIP, {"size": {"height": 224}}, "size"),
        (CLIP, {"size": 224, "image_processor_type": None}, "image_processor_type"),
        (CLIP, {"crop_size": {"shortest_edge": 224}}, "crop_size"),
        (CLIP, {"crop_size": {"height": 256, "width": 224}}, "crop_size"),
        (CLIP, {"crop_size": None}, "crop_size"),
        (CLIP, {"do_center_crop": False}, "size"),
        (CLIP, {"do_resize": False}, "do_resize"),
        (VIT, {"do_resize": False}, "do_resize"),
        (VIT, {"resample": 6}, "resample"),
        (VIT, {"resample": "bicubic"}, "resample"),
        (VIT, {"resample": True}, "resample"),
        (VIT, {"image_mean": 0.5}, "image_mean"),
        (VIT, {"image_mean": [0.5, 0.5]}, "image_mean"),
        (VIT, {"image_mean": [0.5, 0.5, float("nan")]}, "image_mean"),
        (VIT, {"image_std": [0.5, 0.5, "0.5"]}, "image_std"),
        (VIT, {"image_std": [0.5, 0.5, 0]}, "image_std"),
        (VIT, {"rescale_factor": 0}, "rescale_factor"),
        (VIT, {"rescale_factor": float("inf")}, "rescale_factor"),
        (VIT, {"rescale_factor": None}, "rescale_factor"),
        (CONVNEXT, {"crop_pct": None}, "crop_pct"),
        (CONVNEXT, {"crop_pct": 0}, "crop_pct"),
        (CONVNEXT, {"crop_pct": 1.1}, "crop_pct"),
        (CLIP, {"image_processor_type": "LevitImageProcessor"}, "image_processor_type"),
        (CLIP, {"image_processor_type": "PoolFormerImageProcessor"}, "image_processor_type"),
        (CLIP, {"image_processor_type": "MobileViTImageProcessor"}, "image_processor_type"),
        (CLIP, {"image_processor_type": "Siglip2ImageProcessor"}, "image_processor_type"),
        (CLIP, {"image_processor_type": "PerceiverImageProcessorFast"}, "image_processor_type"),
        (
            without(CLIP, "image_processor_type"),
            {"feature_extractor_type": "FlavaFeatureExtractor"},
            "feature_extractor_type",
        ),
    ],
)
def test_what_is_not_known_of_huggingface_is_refused_by_file_and_field(
    config: dict[str, Any], changes: dict[str, Any], field: str
) -> None:
    from_huggingface(config, origin=FILE)
    with pytest.raises(UsageError) as raised:
        from_huggingface({**config, **changes}, origin=FILE)
    assert str(raised.value).startswith(f"{FILE}: ")
    assert f"`{field}`" in str(raised.value) or f"(`{field}` false)" in str(raised.value)


@pytest.mark.parametrize("field", ["size", "crop_size", "resample", "image_mean", "image_std"])
def test_a_missing_field_of_huggingface_is_named(field: str) -> None:
    with pytest.raises(UsageError, match=f"^{FILE}: .*`{field}`"):
        from_huggingface(without(CLIP, field), origin=FILE)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"input_size": [1, 224, 224]}, "input_size"),
        ({"input_size": [3, 224]}, "input_size"),
        ({"input_size": [3, 0, 224]}, "input_size"),
        ({"input_size": [3, 224.0, 224]}, "input_size"),
        ({"input_size": [3, 224, 256]}, "input_size"),  # which timm does not stretch
        ({"crop_pct": 1.1}, "crop_pct"),
        ({"crop_pct": "0.9"}, "crop_pct"),
        ({"crop_mode": "border"}, "crop_mode"),
        ({"interpolation": "random"}, "interpolation"),
        ({"interpolation": 3}, "interpolation"),
        ({"mean": 0.5}, "mean"),
        ({"std": [0.2, 0.2]}, "std"),
        ({"std": [0.2, 0.2, -0.2]}, "std"),
        *(({field: None}, field) for field in ("input_size", "crop_pct", "interpolation", "mean", "std")),
    ],
)
def test_what_is_not_known_of_timm_is_refused_by_file_and_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=f"^{FILE}: `{field}`"):
        from_timm({**TIMM, **changes}, origin=FILE)


# Folders


def write(folder: Path, **files: Any) -> str:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


def test_the_processors_file_comes_before_timms(tmp_path: Path) -> None:
    url = write(tmp_path, config={"patch_size": 14, "pretrained_cfg": TIMM}, preprocessor_config=CLIP)
    assert read_preparation(url) == Preparation(Fit(224, "bicubic"), TORCH, 224, 224, patch_size=14)


def test_timms_file_is_read_where_there_is_no_processors(tmp_path: Path) -> None:
    url = write(tmp_path, config={"architecture": "vit", "pretrained_cfg": TIMM})
    assert read_preparation(url) == Preparation(Fit(248, "bicubic", "round"), TORCH, 224, 224)


@pytest.mark.parametrize("patch_size", [0, -1, [14, 14], "14", None, True])
def test_a_patch_size_that_is_none_is_not_used(tmp_path: Path, patch_size: Any) -> None:
    url = write(tmp_path, config={"patch_size": patch_size}, preprocessor_config=CLIP)
    assert read_preparation(url).patch_size is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no config.json"),
        ({"preprocessor_config": CLIP}, "has no config.json"),
        ({"config": {}}, "has no preprocessor_config.json"),
        ({"config": {"pretrained_cfg": None}}, "has no preprocessor_config.json"),
        ({"config": "{"}, r"/config.json is not JSON"),
        ({"config": "[]"}, r"/config.json is not a JSON object"),
        ({"config": {}, "preprocessor_config": "\0"}, r"/preprocessor_config.json is not JSON"),
        ({"config": {}, "preprocessor_config": "3"}, r"/preprocessor_config.json is not a JSON object"),
        ({"config": {}, "preprocessor_config": "{}"}, r"/preprocessor_config.json: `size`"),
        ({"config": {"pretrained_cfg": {}}}, r"/config.json: `input_size`"),
    ],
)
def test_a_folder_that_does_not_say_it_is_refused(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        read_preparation(write(tmp_path, **files))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
