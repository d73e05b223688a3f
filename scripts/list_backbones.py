"""Writes featurize/backbones/known.json, the table behind `featurize backbones`; after another version of Keras, run it again.

It builds every network without weights, one at a time: some minutes, and 2 GB of memory.

    .venv/bin/python scripts/list_backbones.py [NAME...]     # with names, only these are built anew
"""

import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from featurize.backbones import known
from featurize.backbones.efficientnet_lite import NAME
from featurize.backbones.keras_network import application_names

_PATH = Path(known.__file__).with_name(known.TABLE)


def write_table(names: Sequence[str] = ()) -> None:
    """Writes the table, a backbone a line, by name.

    Args:
        names: those to build; the others stay. None: all, and those that are no longer known go.
    """
    entries = {entry["name"]: entry for entry in json.loads(_PATH.read_text(encoding="utf-8"))} if names else {}
    for name in names or sorted([NAME, *application_names()]):
        found = known.examine_network(name)
        print(f"{name}: {found.features:,} features of {found.layer}, {found.flops / 1e9:.2f} GFLOPs", flush=True)
        entries[name] = asdict(found)
        gc.collect()
    lines = ",\n".join(json.dumps(entries[name]) for name in sorted(entries))
    _PATH.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write_table(sys.argv[1:])
