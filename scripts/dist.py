"""Makes dist/firn-<version>.zip: all of Firn's own code, for `spark-submit --py-files`. Equal code gives equal bytes.

It holds what `setup.cfg` installs: the packages, their package data, and the version for `importlib.metadata`.

    python3.11 scripts/dist.py [FOLDER]
"""

import configparser
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
_MODE = 0o644 << 16


def project_version() -> str:
    """The version in featurize/__init__.py."""
    match = re.search(r'^__version__ = "([^"]+)"', (ROOT / "featurize" / "__init__.py").read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit('dist: featurize/__init__.py has no line __version__ = "..."')
    return match.group(1)


def list_contents() -> Iterator[Path]:
    """Every file that belongs in the zip."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    for name in _listed(settings["options.packages.find"]["include"]):
        for file in sorted(ROOT.glob(f"{name.removesuffix('*')}/**/__init__.py")):
            package = ".".join(file.parent.relative_to(ROOT).parts)
            for pattern in ("*.py", *_listed(settings["options.package_data"].get(package, ""))):
                yield from file.parent.glob(pattern)


def write_zip(path: Path, version: str) -> None:
    """Writes the zip: files in order, without times, and uncompressed, so that the bytes do not depend on zlib's version."""
    metadata = f"Metadata-Version: 2.1\nName: firn\nVersion: {version}\n"
    files = {str(file.relative_to(ROOT)): file.read_bytes() for file in list_contents()}
    files[f"firn-{version}.dist-info/METADATA"] = metadata.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = _MODE
            archive.writestr(entry, files[name])


def _listed(text: str) -> list[str]:
    """The items of a list in setup.cfg, separated by commas or line ends."""
    return [item.strip() for item in re.split(r"[,\n]", text) if item.strip()]


def main() -> None:
    """Writes the zip and prints its path."""
    version = project_version()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"
    path = folder / f"firn-{version}.zip"
    write_zip(path, version)
    print(path)


if __name__ == "__main__":
    main()
