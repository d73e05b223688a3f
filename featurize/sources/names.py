"""Names in folders of images: what is no image, which folders are splits, and class names that are easily a mistake."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
COPYING = "._COPYING_"
"""The ending of a file that is still being copied to HDFS."""
_SPELLED_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"})
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
)


def is_left_out(inner: str) -> bool:
    """Whether the file with this path below a folder is no image of the folder's owner.

    Names that begin with a dot are left out (`.DS_Store`, `._a.jpg`, `.ipynb_checkpoints`), files that are still being copied,
    and what Windows, macOS and network drives leave behind.
    """
    if inner.endswith(COPYING):
        return True
    *folders, name = inner.casefold().split("/")
    if name.startswith(".") or name in _SYSTEM_FILES:
        return True
    return any(folder.startswith(".") or folder in _SYSTEM_FOLDERS for folder in folders)


def spelled_out(name: str) -> str:
    r"""A file's name, as Python gives it, in a form that tables can hold: bytes that are not UTF-8 are spelled, as `caf\xe9`."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def true_name(spelled: str) -> bytes:
    """The bytes of the name for which `spelled_out` gives `spelled`, if it is none that has these characters itself."""
    return _SPELLED_BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), spelled.encode())


def twin_of(name: str, classes: Collection[str]) -> str | None:
    """The class whose name differs from `name` only in case, blanks or the form of its characters, if there is one."""
    return next((twin for twin in sorted(classes) if twin != name and _essence(twin) == _essence(name)), None)


def _essence(name: str) -> str:
    """A name without what is easily mistyped, and not seen."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def notes_on_classes(classes: Collection[str], *, splits_by_folders: bool | None) -> list[str]:
    """What is odd about class names, a sentence each: twins that differ in a detail, and names of splits.

    Args:
        classes: The class labels.
        splits_by_folders: Whether folders give the splits; None: the source is a table, in which they cannot.
    """
    notes, alike = list[str](), defaultdict[str, list[str]](list)
    for name in sorted(classes):
        alike[_essence(name)].append(name)
    for twins in alike.values():
        if len(twins) > 1:
            names = ", ".join(ascii(name) for name in twins)
            notes.append(f"the classes {names} differ only in case, blanks or the form of their characters.")
    splits = [name for name in sorted(classes) if name.casefold() in SPLIT_FOLDERS]
    if splits and splits_by_folders is False and len(splits) == len(classes):
        notes.append(
            f'all classes are named like splits: {", ".join(splits)}. If they are splits, set `images.split` = "folders".'
        )
    elif splits:
        notes.append(f"classes are named like splits: {', '.join(splits)}.")
    return notes
