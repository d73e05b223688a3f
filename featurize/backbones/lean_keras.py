"""Keras without the libraries that it imports only because they are installed: about a third of the time of its import.

Keras imports scikit-learn for `keras.wrappers`, matplotlib for `keras.visualization`, and pandas to recognise its frames among
training data. Nothing in Firn uses these parts, and every worker, rank and command pays for them. Keras has no switch for it, but
works without a library that is not installed; so here these libraries appear to be missing while Keras is imported.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType

EXTRAS = ("matplotlib", "pandas", "sklearn")
LEAN_KERAS = "FIRN_LEAN_KERAS"
"""An environment variable: 1 in the workers of a Spark session that Firn has made."""
_IMPORTLIB = ("importlib", "_frozen_importlib")


def leave_out_keras_extras() -> None:
    """Makes Keras skip its `EXTRAS` when it is imported in this process, if it is not imported yet.

    For processes that are Firn's own: commands, ranks and Spark's workers. `keras.wrappers` and the galleries of
    `keras.visualization` do not work in them afterwards. All other code can import these libraries as usual, before, during and
    after the import of Keras, in any thread.
    """
    if not any(isinstance(finder, _ExtrasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ExtrasFinder())


def leave_out_in_own_worker() -> None:
    """Does the same in a worker of a session that Firn has made. Workers of other sessions may run other code, too."""
    if os.environ.get(LEAN_KERAS) == "1":
        leave_out_keras_extras()


class _ExtrasFinder(MetaPathFinder):
    """Finds nothing, and ends the search where a module of Keras, while it is being imported, looks for an extra."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname in EXTRAS and _is_keras_being_imported(sys._getframe(1)):
            raise ModuleNotFoundError(f"{fullname} is left out of the import of Keras", name=fullname)
        return None


def _is_keras_being_imported(frame: FrameType | None) -> bool:
    """Whether the innermost code, apart from Python's import system, is the top level of a module of Keras."""
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_IMPORTLIB):
        frame = frame.f_back
    if frame is None or frame.f_code.co_name != "<module>":
        return False
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "keras"
