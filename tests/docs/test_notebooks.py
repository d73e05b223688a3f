"""The notebooks of docs/notebooks, run from top to bottom in a folder of their own, on small feature sets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import tomli_w
from helpers.project import ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode

import featurize

FOLDER = ROOT / "docs" / "notebooks"
CELL_TIMEOUT_S = 600
LOADED = "import json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
Prepare = Callable[[Path, pytest.FixtureRequest], None]


def make_scenes(folder: Path, request: pytest.FixtureRequest) -> None:
    """A feature set of 80 drawn scenes at runs/scenes/features: the mean red, green and blue of each."""
    layout = {"images": 80, "height": 64, "width": 64, "seed": 5}
    card = {"name": "scenes", "title": "Scenes", "licence": "CC0-1.0", "layout": "synthetic", "synthetic": layout}
    (folder / "scenes.toml").write_text(tomli_w.dumps(card))
    recipe = {
        "images": {"source": str(folder / "scenes.toml")},
        "backbone": {"name": str(request.getfixturevalue("mean_backbone")), "preprocessing": "none"},
        "features": {"url": str(folder / "runs" / "scenes" / "features")},
    }
    made = featurize.run(recipe, spark=request.getfixturevalue("spark"))
    assert made.rows == 80


def make_nothing(folder: Path, request: pytest.FixtureRequest) -> None:
    """Nothing: the notebook makes all that it needs."""


NOTEBOOKS: dict[str, Prepare] = {
    "a_sweep": make_nothing,
    "analyst": make_scenes,
    "from_a_folder_to_a_report": make_nothing,
}
"""What each notebook finds in the folder that it runs in, by its name without .ipynb."""


@pytest.fixture(scope="module")
def run_notebook(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], tuple[NotebookNode, set[str]]]:
    """Prepares a folder and runs a notebook there, once; gives it with its outputs, and the modules that its kernel has."""
    done: dict[str, tuple[NotebookNode, set[str]]] = {}

    def run(name: str) -> tuple[NotebookNode, set[str]]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            NOTEBOOKS[name](folder, request)
            done[name] = execute(name, folder)
        return done[name]

    return run


def execute(name: str, folder: Path) -> tuple[NotebookNode, set[str]]:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(LOADED, id="loaded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("IPYTHONDIR", str(folder / ".ipython"))
        client = NotebookClient(
            notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    (loaded,) = notebook.cells.pop().outputs
    return notebook, set(json.loads(loaded.text))


def outputs_of(notebook: NotebookNode, kind: str) -> list[Any]:
    """The outputs of one MIME type, in their order."""
    return [
        output.data[kind]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if kind in output.get("data", {})
    ]


def test_every_notebook_has_a_test_and_lies_there_without_outputs() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)
    for name in NOTEBOOKS:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_a_notebook_runs_from_top_to_bottom(
    name: str, run_notebook: Callable[[str], tuple[NotebookNode, set[str]]]
) -> None:
    notebook, loaded = run_notebook(name)
    assert ({"featurize", "finetune"} & loaded) != set()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    errors = [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert errors == []


@pytest.mark.spark
@pytest.mark.slow
def test_the_analyst_needs_neither_spark_nor_tensorflow(
    run_notebook: Callable[[str], tuple[NotebookNode, set[str]]],
) -> None:
    notebook, loaded = run_notebook("analyst")
    assert {"tensorflow", "keras", "pyspark"} & loaded == set()
    tables = outputs_of(notebook, "text/html")
    assert "80 in 4 classes" in tables[0]
    assert tables[2].count("data:image/jpeg;base64,") == 10  # nine, and the one that they are like
    assert len(outputs_of(notebook, "image/png")) == 1
