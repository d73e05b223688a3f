"""A backbone in int8: calibrated on images of the set, judged by heads on others of its images, and kept beside its rows.

None of these images belongs to the test split, which stays unseen.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from featurize import storage
from featurize.backbones.backbone import (
    QuantizedBackbone,
    finish_backbone,
    load_backbone,
    open_backbone,
    prepare_backbone,
)
from featurize.backbones.spec import BackboneSpec, PreparedBackbone
from featurize.building.starting_session import StartingSession
from featurize.engines.engine import NAMES, Engine, installed_engines
from featurize.engines.judging import FOLDS, LEAST_IMAGES, MOST_IMAGES, Verdict, judge
from featurize.engines.measurement import Measurement
from featurize.engines.precision import Forward
from featurize.engines.quantization import CALIBRATION_IMAGES, quantize_onnx
from featurize.errors import JobError, UsageError
from featurize.jobs.engine_choice import EngineChoice
from featurize.jobs.image_samples import ImageSample, Pixels
from featurize.progress import stage
from featurize.recipes.backbone_section import BackboneSettings
from featurize.sources.listing import ImageSource
from featurize.tables.documents import check_version

_logger = logging.getLogger(__name__)
SCHEMA_VERSION = 1
"""The schema version of the document beside a kept network."""
_VERSION = "schema_version"
_BATCH = 32
_MOST_VALUES = 1 << 26  # of features in float32 that are held to judge: 256 MB


def prepare_quantized(
    spark: SparkSession | StartingSession,
    settings: BackboneSettings,
    source: ImageSource,
    folder: str | Path,
    *,
    decode_timeout_s: float,
) -> PreparedBackbone:
    """The backbone in int8 that `settings` describe, its file in `folder`: that of `quantized`, or one made for `source`.

    Args:
        spark: the job's session; it is waited for only where engines are measured.
        settings: with `precision` "int8".
        source: the images; those to calibrate and to judge with are read and decoded on the driver.
        folder: a local folder.
        decode_timeout_s: seconds; an image that takes longer to decode is left out.

    Raises:
        UsageError: the backbone cannot be opened, or there are too few images to judge it by.
        JobError: heads lose accuracy, or no engine computes the network.
    """
    if settings.quantized is not None:
        prepared = prepare_backbone(settings, folder, decide=EngineChoice(spark))
        return replace(prepared, quantization=_read_document(settings.quantized))
    if "onnxruntime" not in installed_engines():
        raise UsageError("`backbone.precision`: int8 needs the extra `engines` of Firn, which is not installed.")
    base = open_backbone(settings, folder)
    sample = ImageSample(source, base.spec, decode_timeout_s=decode_timeout_s)
    stage(f"calibrating {base.spec.name} in int8")
    opened, calibrated = _quantize(base, sample, Path(folder))
    prepared = finish_backbone(opened, settings, decide=EngineChoice(spark))
    reference = base.forward(_fastest(prepared.measured) or prepared.spec.engine, "float32")
    rounded = load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256, batch_size=_BATCH)
    verdict = _judge(sample, reference, rounded, base.spec)
    if not verdict.is_accepted:
        raise JobError(
            f"`backbone.precision`: int8 is refused for {base.spec.name}: {verdict}. Use float32 or bfloat16."
            + _speeds(prepared.measured)
        )
    _logger.info("int8 is accepted: %s", verdict)
    return replace(prepared, quantization={"calibration_images": calibrated, "judged": verdict.as_dict()})


def kept_files(backbone: PreparedBackbone) -> dict[str, Path]:
    """What a feature set keeps of its backbone, by name: the network in int8, which cannot be made again, and its judgement."""
    if backbone.spec.precision != "int8" or backbone.path is None:
        return {}
    document = backbone.path.with_suffix(".json")
    content = {_VERSION: SCHEMA_VERSION, **(backbone.quantization or {})}
    document.write_text(json.dumps(content), encoding="utf-8")
    return {f"{backbone.sha256}.onnx": backbone.path, f"{backbone.sha256}.json": document}


def _quantize(base: Any, sample: ImageSample, folder: Path) -> tuple[QuantizedBackbone, int]:
    """The backbone in int8, and the number of images that it was calibrated with."""
    images = [pixels for _, pixels in sample.take(0, CALIBRATION_IMAGES)]
    if not images:
        raise UsageError(
            "`backbone.precision`: there is no readable image outside the test split to calibrate int8 with."
        )
    exported, made = base.file("onnxruntime"), folder / "int8.onnx"
    try:
        quantize_onnx(exported, made, np.stack(images), made_from=base.spec.preparation_id)
        return QuantizedBackbone(base, str(made), folder), len(images)
    finally:
        exported.unlink()
        made.unlink(missing_ok=True)


def _judge(sample: ImageSample, reference: Forward, rounded: Forward, spec: BackboneSpec) -> Verdict:
    wanted = max(LEAST_IMAGES, min(MOST_IMAGES, _MOST_VALUES // int(np.prod(spec.feature_shape))))
    stage(f"judging int8 by heads on at most {wanted} images")
    labels: list[str] = []
    ours, theirs = [], []
    for some, pixels in _batches(sample.take(CALIBRATION_IMAGES, wanted)):
        labels += some
        ours.append(np.asarray(reference(pixels), np.float32))
        theirs.append(np.asarray(rounded(pixels), np.float32))
    _, codes, sizes = np.unique(np.array(labels, dtype=str), return_inverse=True, return_counts=True)
    usable = (sizes >= FOLDS)[codes] if labels else np.zeros(0, bool)
    if usable.sum() < LEAST_IMAGES or (sizes >= FOLDS).sum() < 2:
        raise UsageError(
            f"`backbone.precision`: int8 is judged by heads on at least {LEAST_IMAGES} images of two classes or more, each with "
            f"{FOLDS} or more, besides {CALIBRATION_IMAGES} for calibration and those of the test split. There are "
            f"{int(usable.sum())}: use float32 or bfloat16."
        )
    return judge(np.concatenate(ours)[usable], np.concatenate(theirs)[usable], codes[usable])


def _batches(items: Iterable[tuple[str, Pixels]]) -> Iterator[tuple[Sequence[str], Pixels]]:
    left = iter(items)
    while batch := list(islice(left, _BATCH)):
        yield [label for label, _ in batch], np.stack([pixels for _, pixels in batch])


def _fastest(measured: Sequence[Measurement]) -> Engine | None:
    """The fastest engine in float32; None where none was measured."""
    usable = [one for one in measured if one.precision == "float32" and one.is_faithful]
    return max(usable, key=lambda one: one.images_per_s).engine if usable else None


def _speeds(measured: Sequence[Measurement]) -> str:
    shown = [f"{NAMES[one.engine]} {one.precision} {one.images_per_s:.3g}" for one in measured if one.error is None]
    return f" Measured, images/s: {', '.join(shown)}." if shown else ""


def _read_document(network_url: str) -> dict[str, Any]:
    """How a kept network was made and judged; empty where that is not kept beside it.

    Raises:
        JobError: It has another schema version.
    """
    url = f"{network_url.removesuffix('.onnx')}.json"
    try:
        document = storage.read_json(url)
    except (OSError, ValueError, RecursionError):
        return {}
    check_version(document, version=SCHEMA_VERSION, origin=url)
    return {key: value for key, value in document.items() if key != _VERSION} if isinstance(document, dict) else {}
