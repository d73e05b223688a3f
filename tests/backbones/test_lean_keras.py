import json
import subprocess
import sys
from typing import Any

import pytest

_WHAT_IS_IMPORTED = """
import json, sys
EXTRAS = ("matplotlib", "pandas", "sklearn")
here = {}
if "lean" in sys.argv:
    from featurize.backbones.lean_keras import leave_out_keras_extras
    leave_out_keras_extras()
    leave_out_keras_extras()
if "pandas" in sys.argv:
    import pandas
import keras, numpy
here["with_keras"] = [name for name in EXTRAS if name in sys.modules]
inputs = keras.Input((2,))
model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
model.compile("sgd", "mse")
history = model.fit(numpy.eye(2), numpy.ones((2, 1)), verbose=0)
here["loss"] = history.history["loss"][0]
import matplotlib.pyplot, pandas, sklearn.base
here["later"] = [name for name in EXTRAS if name in sys.modules]
print(json.dumps(here))
"""
_WHO_IS_REFUSED = """
import json, sys
from featurize.backbones.lean_keras import leave_out_keras_extras
leave_out_keras_extras()
refused = []
top = compile("import sklearn", "module", "exec")
function = compile("def use():\\n import sklearn\\nuse()", "module", "exec")
for name, code in (("keras.src.some", top), ("keras", top), ("keras.src.some", function), ("kerastuner.some", top)):
    try:
        exec(code, {"__name__": name})
        refused.append(False)
        for module in [module for module in sys.modules if module.partition(".")[0] == "sklearn"]:
            del sys.modules[module]
    except ModuleNotFoundError as error:
        refused.append(error.name == "sklearn")
print(json.dumps(refused))
"""


def run(program: str, *arguments: str) -> Any:
    made = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_keras_comes_without_extras_and_they_can_be_imported_later() -> None:
    here = run(_WHAT_IS_IMPORTED, "lean")
    assert here["with_keras"] == []
    assert here["loss"] > 0
    assert here["later"] == ["matplotlib", "pandas", "sklearn"]


def test_keras_has_what_was_imported_before_it() -> None:
    assert run(_WHAT_IS_IMPORTED, "lean", "pandas")["with_keras"] == ["pandas"]


def test_keras_alone_imports_all_that_is_installed() -> None:
    assert run(_WHAT_IS_IMPORTED)["with_keras"] == ["matplotlib", "pandas", "sklearn"]


def test_only_modules_of_keras_are_refused_and_only_at_their_top_level() -> None:
    assert run(_WHO_IS_REFUSED) == [True, True, False, False]


@pytest.mark.parametrize(("variable", "found"), [("1", True), ("0", False), (None, False)])
def test_workers_of_other_peoples_sessions_keep_keras_whole(
    variable: str | None, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurize.backbones.lean_keras import LEAN_KERAS, leave_out_in_own_worker

    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "lean" not in type(finder).__module__])
    monkeypatch.delenv(LEAN_KERAS, raising=False)
    if variable is not None:
        monkeypatch.setenv(LEAN_KERAS, variable)
    leave_out_in_own_worker()
    assert any("lean_keras" in type(finder).__module__ for finder in sys.meta_path) is found
