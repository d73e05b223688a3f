"""Data set cards: a TOML file in `datasets/` with a data set's origin, licence, checksums, layout and classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from featurize.errors import UsageError
from featurize.foreign_text import without_secrets_in
from featurize.recipes.backbone_section import Sha256
from featurize.recipes.recipe import Split
from featurize.recipes.toml_settings import Settings, check_settings, read_toml
from featurize.storage.inner_path import InnerPath


class CardFile(Settings):
    """A file of the data set and its digest.

    Files of `idx` are checked when they are ingested, by the SHA-256 of their unzipped content; for `folders` it is the
    archive, with the digest that its publisher states, for the user to check before unpacking.
    """

    name: str
    sha256: Sha256 | None = None
    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")


class IdxPart(Settings):
    """One split of an IDX data set: the names of its files without ``.gz``, which is tried automatically."""

    images: InnerPath
    labels: InnerPath


class IdxLayout(Settings):
    """The two splits of MNIST."""

    train: IdxPart
    test: IdxPart


class SyntheticLayout(Settings):
    """Procedurally drawn scenes."""

    images: int = Field(ge=1)
    height: int = Field(default=160, ge=16, le=4096)
    width: int = Field(default=160, ge=16, le=4096)
    seed: int = Field(default=42, ge=0)


class Expectation(Settings):
    """The contents of a complete copy; other numbers lead to a warning, not an error."""

    images: int | None = Field(default=None, ge=1)
    classes: int | None = Field(default=None, ge=1)


class Card(Settings):
    """A data set card."""

    name: str = Field(pattern="^[a-z0-9_]+$")
    title: str
    homepage: str | None = None
    licence: str
    citation: str | None = None
    layout: Literal["folders", "idx", "synthetic"]
    source: str | None = Field(default=None, description="folder or URL of the data set, unless another is given")
    split: Split | None = None
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of train set aside, where the source has its own splits"
    )
    files: list[CardFile] = Field(default_factory=list)
    expect: Expectation = Expectation()
    idx: IdxLayout | None = None
    synthetic: SyntheticLayout | None = None

    @model_validator(mode="after")
    def _has_its_layout(self) -> "Card":
        for layout in ("idx", "synthetic"):
            if (self.layout == layout) != (getattr(self, layout) is not None):
                raise ValueError(f'the section [{layout}] goes with layout = "{layout}". Got layout {self.layout!r}.')
        if self.layout == "idx" and self.split is not None:
            raise ValueError("`split` cannot be used with idx, which has its own train and test splits.")
        if self.layout == "synthetic" and (self.split == "folders" or self.source is not None):
            raise ValueError("synthetic scenes can have neither folders nor a source.")
        return self


def read_card(path: str | Path) -> Card:
    """The card in a TOML file.

    Raises:
        UsageError: The file cannot be read, or has faults; the message lists all of them.
    """
    return check_settings(Card, read_toml(path), origin=str(path))


def find_card(name: str, folders: Sequence[Path]) -> Path | None:
    """The path of the card that `name` means: a path ending in .toml, or a name in one of `folders`; None if there is none.

    Raises:
        UsageError: `name` ends in .toml and there is no such file.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise UsageError(f"there is no card at {name}.")
        return Path(name)
    if "/" in name:
        return None
    return next((path for folder in folders if (path := folder / f"{name}.toml").is_file()), None)


def describe_card(card: Card) -> dict[str, Any]:
    """The card in the form that manifests store, without passwords and tokens in its URLs."""
    described: dict[str, Any] = without_secrets_in(card.model_dump(exclude_none=True))
    return described
