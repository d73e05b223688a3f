"""The columns of a feature set: which network computes each, and which of its values. Layers of one network are computed in one
pass, by the network that joins them, and cut apart again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurize.backbones.backbone import (
    Decide,
    OpenedBackbone,
    finish_backbone,
    open_backbone,
    prepare_backbone,
)
from featurize.backbones.rebuild import decoding_of, kept_network
from featurize.backbones.spec import BackboneSpec, PreparedBackbone
from featurize.digests import settings_digest
from featurize.errors import UsageError
from featurize.recipes.backbone_section import BackboneSettings
from featurize.recipes.feature_columns import AskedColumn
from featurize.tables.manifests import FeatureColumn

_NOT_OF_THE_NETWORK = {"layer", "layers", "column"}


@dataclass(frozen=True)
class PreparedColumn:
    """A column of features that is ready to be computed.

    Attributes:
        name: of the column.
        settings: the section `[backbone]` that makes this column alone.
        spec: the backbone that makes this column alone.
        backbone: the number of the backbone, among those that are prepared, that computes it.
        start: the first of its values among those of an image that this backbone computes.
    """

    name: str
    settings: BackboneSettings
    spec: BackboneSpec
    backbone: int
    start: int = 0

    @property
    def determining(self) -> dict[str, Any]:
        """What determines its values; `weights` names only the origin of the weights."""
        return {key: value for key, value in self.spec.as_dict().items() if key != "weights"}

    def as_manifest(self, backbone: PreparedBackbone) -> FeatureColumn:
        """The column as the manifest has it, with what is known of the backbone that computes it."""
        about = {
            "engine": self.spec.engine,
            "weights_file_sha256": backbone.report.file_sha256 if backbone.report is not None else None,
            "bfloat16_cosine": backbone.bfloat16_cosine,
            "batch_size": backbone.batch_size,
            **({"per_core": backbone.per_core} if backbone.per_core else {}),
            "engines": [one.as_dict() for one in backbone.measured],
            **({} if backbone.quantization is None else {"quantization": backbone.quantization}),
        }
        return FeatureColumn(
            name=self.name,
            preparation_id=self.spec.preparation_id,
            backbone={**self.spec.as_dict(), **about},
            feature_shape=list(self.spec.feature_shape),
            feature_dtype=self.spec.feature_dtype,
            settings=self.settings.model_dump(exclude_none=True),
        )


@dataclass(frozen=True)
class PreparedColumns:
    """Columns of features, and the backbones that compute them."""

    columns: tuple[PreparedColumn, ...]
    backbones: tuple[PreparedBackbone, ...]

    def as_manifest(self) -> list[FeatureColumn]:
        """The columns as the manifest has them."""
        return [column.as_manifest(self.backbones[column.backbone]) for column in self.columns]


def prepare_columns(
    asked: Sequence[AskedColumn],
    folder: str | Path,
    *,
    decide: Decide | None = None,
    quantize: Callable[[BackboneSettings], PreparedBackbone],
) -> PreparedColumns:
    """Prepares the backbones of some columns; those that differ in nothing but the layer are one network.

    Args:
        asked: what to prepare.
        folder: a local folder for the networks.
        decide: as for `prepare_backbone`.
        quantize: prepares a backbone in int8.

    Raises:
        UsageError: as `prepare_backbone`; or two columns are the same.
        JobError: as `prepare_backbone`.
    """
    columns, backbones = list[PreparedColumn](), list[PreparedBackbone]()
    for settings, group in networks_of(asked):
        if len(group) == 1:
            is_int8 = settings.precision == "int8"
            prepared = quantize(settings) if is_int8 else prepare_backbone(settings, folder, decide=decide)
            columns.append(PreparedColumn(group[0].name, group[0].settings, prepared.spec, len(backbones)))
        else:
            opened = open_backbone(settings, folder)
            prepared = finish_backbone(opened, settings, decide=decide)
            columns += _cut_apart(group, opened, prepared, number=len(backbones))
        backbones.append(prepared)
    made = {one.spec.preparation_id: one.name for one in columns}
    if same := next((one for one in columns if made[one.spec.preparation_id] != one.name), None):
        raise UsageError(f"the columns {same.name} and {made[same.spec.preparation_id]} would be the same features.")
    order = [column.name for column in asked]
    return PreparedColumns(tuple(sorted(columns, key=lambda one: order.index(one.name))), tuple(backbones))


def networks_of(asked: Sequence[AskedColumn]) -> list[tuple[BackboneSettings, list[AskedColumn]]]:
    """The networks that compute some columns, each with its columns; in int8 each column has its own network.

    Raises:
        UsageError: of several columns of one network, one has no layer, or two have the same.
    """
    groups: dict[str, list[AskedColumn]] = {}
    for column in asked:
        joined = set() if column.settings.precision == "int8" else _NOT_OF_THE_NETWORK
        group = groups.setdefault(settings_digest(column.settings.model_dump(exclude=joined)), [])
        if same := next((one for one in group if one.settings == column.settings), None):
            raise UsageError(f"the columns {same.name} and {column.name} would be the same features.")
        group.append(column)
    return [(_joined(group), group) for group in groups.values()]


def as_decided(asked: AskedColumn, decided: Mapping[str, Any] | None, url: str) -> AskedColumn:
    """A column with what the rows that exist have decided, where the recipe leaves it open.

    Engine and precision are open where they are "auto", the network where it is to be in int8, and colours where nothing is said.

    Args:
        asked: the column.
        decided: the backbone in the settings of the rows that exist; None: there are none.
        url: URL of the feature set.

    Raises:
        UsageError: int8 is asked for, and the rows are in another precision.
    """
    if decided is None:
        return asked
    settings = asked.settings
    known = {"engine": "tensorflow", **decided}  # the engine of old sets, which do not name it
    if settings.precision == "int8" != known["precision"]:
        raise UsageError(
            f"{url} holds features in {known['precision']}, not in int8; a mixture is refused. Write elsewhere."
        )
    changes = {key: known[key] for key in ("engine", "precision") if getattr(settings, key) == "auto"}
    changes |= open_decoding(settings, known)
    is_open = settings.precision in ("auto", "int8") and settings.quantized is None
    if is_open and known["precision"] == "int8":
        changes["quantized"] = kept_network(url, known["quantized_sha256"])
    return replace(asked, settings=settings.model_copy(update=changes))


def open_decoding(settings: BackboneSettings, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a backbone that exists decides about colours where `settings` say nothing."""
    return {key: value for key, value in decoding_of(known).items() if getattr(settings, key) is None}


def _joined(group: Sequence[AskedColumn]) -> BackboneSettings:
    """The settings of the network that computes all columns of a group."""
    settings = group[0].settings
    if len(group) == 1:
        return settings
    if any(column.settings.layer is None for column in group):
        names = ", ".join(column.name for column in group)
        raise UsageError(f"the columns {names} are of one backbone: each needs a `layer`.")
    return settings.model_copy(update={"layer": " + ".join(str(column.settings.layer) for column in group)})


def _cut_apart(
    group: Sequence[AskedColumn], opened: OpenedBackbone, prepared: PreparedBackbone, *, number: int
) -> list[PreparedColumn]:
    """The columns of a network that joins them."""
    columns, start = [], 0
    for column in group:
        alone = opened.describe(column.settings.layer)
        spec = replace(alone, engine=prepared.spec.engine, precision=prepared.spec.precision)
        columns.append(PreparedColumn(column.name, column.settings, spec, number, start))
        start += math.prod(spec.feature_shape)
    if start != math.prod(prepared.spec.feature_shape):
        raise UsageError(f"`backbone.layers`: the layers of {prepared.spec.name} cannot be joined.")
    return columns
