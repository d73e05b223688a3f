"""Tests of `import finetune`: which names it has, and what it does not load."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

import finetune
from featurize.engines.tensorflow_log import LEVEL
from finetune.api.model import Model

FUNCTIONS = [name for name in finetune.__all__ if name[0].islower()]


def test_importing_it_loads_nothing_large() -> None:
    code = (
        "import sys, finetune; dir(finetune); finetune.UsageError;"
        "print(sorted({'tensorflow', 'keras', 'pyspark', 'pyarrow', 'pandas', 'numpy', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_written_where_nobody_has_asked_for_it(model: Model) -> None:
    code = "import sys, finetune; print(len(finetune.load_model(sys.argv[1]).evaluate().confusion))"
    command = [sys.executable, "-c", code, model.url]
    environment = {name: value for name, value in os.environ.items() if name != LEVEL}  # importing Firn here has set it
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("3\n", "")


@pytest.mark.parametrize("name", finetune.__all__)
def test_each_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(finetune, name)
    assert value.__name__ == name
    assert value.__doc__.strip()
    assert name in dir(finetune)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_module_has_the_name_of_a_function(name: str) -> None:
    """Importing it would put the module in the place of the function."""
    assert find_spec(f"finetune.{name}") is None


def test_other_names_are_refused_as_by_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'finetune' has no attribute 'nothing'"):
        _ = finetune.nothing
