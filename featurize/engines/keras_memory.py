"""The memory that a .keras file asks for, found before its network is built: a line in it may ask for any number of weights."""

import json
import math
import random
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from featurize.memory import machine_memory_bytes

MAX_CONFIG_BYTES: Final = 64 << 20
"""A description of a network that is longer is refused. That of EfficientNetB7 has 0.6 MB."""
_CONFIG = "config.json"
_UNINITIALIZED = "uninitialized_variables"  # where Keras keeps the variables that it has not given a value yet


def check_keras_memory(path: str | Path) -> None:
    """Checks that this machine has the memory for the network in a local .keras file. Nothing of it is computed or kept.

    A file that Keras cannot read passes: Keras says what is wrong with it.

    Raises:
        ValueError: it asks for more; the message is one sentence.
    """
    memory = machine_memory_bytes()
    with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > memory:
            raise ValueError(f"it unpacks to {_in_gb(unpacked)}, and this machine has {_in_gb(memory)} of memory.")
        with suppress(KeyError):  # there is no description
            if archive.getinfo(_CONFIG).file_size > MAX_CONFIG_BYTES:
                raise ValueError(f"the description of its network has more than {MAX_CONFIG_BYTES >> 20} MiB.")
            asked = _bytes_of_weights(archive.read(_CONFIG))
            if asked > memory:
                raise ValueError(
                    f"its weights ask for {_in_gb(asked)} of memory, and this machine has {_in_gb(memory)} of it."
                )


def _bytes_of_weights(description: bytes) -> int:
    """The size of all weights of a described network in bytes, as far as Keras can make it."""
    from keras import StatelessScope, saving

    with _new_variables() as variables, StatelessScope(initialize_variables=False):
        # Whatever is wrong with it is found again, and reported, where the network is loaded.
        with suppress(Exception):
            config = json.loads(description)
            config["compile_config"] = None
            saving.deserialize_keras_object(config, safe_mode=True)
        return sum(math.prod(variable.shape) * _bytes_per_value(variable.dtype) for variable in variables)


@contextmanager
def _new_variables() -> Iterator[list[Any]]:
    """The variables that Keras makes in the block, in which they must get no values; Keras forgets them after it."""
    from keras.src.backend.common import global_state  # Keras 3.15 has no public name for it

    before = global_state.get_global_attribute(_UNINITIALIZED)
    new: list[Any] = []
    drawn = random.getstate()  # by Keras, for the seed of each layer that has none
    global_state.set_global_attribute(_UNINITIALIZED, new)
    try:
        yield new
    finally:
        global_state.set_global_attribute(_UNINITIALIZED, before)
        random.setstate(drawn)


def _bytes_per_value(dtype: str) -> int:
    """The size of a value in bytes; dtypes have their bits in their names, and without them it is a truth value or a text."""
    bits = "".join(character for character in dtype.split("_")[0] if character.isdecimal())
    return max(1, int(bits or 8) // 8)


def _in_gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
