"""The columns of features that a recipe asks for: one, or one for each of several layers and backbones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from featurize.recipes.backbone_section import BackboneSettings

ONLY = "features"
"""The name of the column of a set with one."""


@dataclass(frozen=True)
class AskedColumn:
    """A column of features, as the recipe asks for it.

    Attributes:
        name: of the column.
        settings: the section `[backbone]` that makes this column alone.
    """

    name: str
    settings: BackboneSettings


def asked_columns(sections: Sequence[BackboneSettings]) -> tuple[AskedColumn, ...]:
    """The columns of some sections: `features` for one section with one layer, else ``features_<layer>`` for each of its layers,
    or ``features_<backbone>`` and ``features_<backbone>_<layer>`` where there are several sections.

    Raises:
        ValueError: two columns have the same name; the message names it.
    """
    columns = []
    for section in sections:
        layers: Sequence[str | None] = section.layers or [section.layer]
        for layer in layers:
            alone = section.model_copy(update={"layer": layer, "layers": None, "column": None})
            columns.append(AskedColumn(_name_of(section, layer, several=len(sections) > 1), alone))
    names = [column.name for column in columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two columns would be named {twice[0]}: give one of them another name with `column`.")
    return tuple(columns)


def _name_of(section: BackboneSettings, layer: str | None, *, several: bool) -> str:
    if section.column is not None:
        return section.column
    if not several and section.layers is None:
        return ONLY
    named = [PurePosixPath(section.name.rstrip("/")).stem if section.is_file else section.name.rstrip("/")]
    parts = [*(named if several else []), *([layer] if layer is not None else [])]
    slugs = (re.sub("[^a-z0-9]+", "_", part.rsplit("/", 1)[-1].lower()).strip("_") for part in parts)
    return "_".join([ONLY, *slugs])
