"""The house: which room may import which. Read from the source, so imports inside functions and for types alone count as well."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import ROOT

# From the ground up: a room imports those before it. The files beside the rooms are the ground of `featurize`.
ROOMS = {
    "featurize": [
        "storage",
        "connectors",
        "recipes",
        "decoding",
        "tables",
        "sources",
        "engines",
        "backbones",
        "building",
        "upkeep",
        "pages",
        "similar",
        "sql",
        "jobs",
        "commands",
    ],
    "finetune": [
        "scores",
        "models",
        "networks",
        "ranks",
        "rows",
        "registry",
        "training",
        "sweeps",
        "evaluation",
        "drift",
        "prediction",
        "streams",
        "reports",
        "api",
        "commands",
    ],
}
GROUND, ROOF = "(ground)", "(roof)"
ORDER = [
    f"featurize.{GROUND}",
    *(f"featurize.{room}" for room in ROOMS["featurize"]),
    f"featurize.{ROOF}",
    *(f"finetune.{room}" for room in ROOMS["finetune"]),
    f"finetune.{ROOF}",
]
# The faces and the entry points see everything; so do the two names under which models of 0.1 are loaded.
ON_THE_ROOF = {"__init__", "__main__", "pyfunc_model", "predict_transformer"}
MOST_FILES, MOST_LINES = 16, 400


def sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def room_of(module: str) -> str:
    """The room of a module, or of a name in one: `featurize.tables.manifests.read_manifest` lies in `featurize.tables`."""
    package, *rest = module.split(".")
    if rest and rest[0] in ROOMS[package]:
        return f"{package}.{rest[0]}"
    return f"{package}.{ROOF}" if not rest or rest[0] in ON_THE_ROOF else f"{package}.{GROUND}"


def imports_of(file: Path) -> Iterator[str]:
    """The full names of what a file imports of Firn, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ROOMS)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") or file.stem


def test_rooms_import_only_what_lies_below_them() -> None:
    wrong = defaultdict(set)
    for file in sources("featurize", "finetune"):
        room = room_of(module_of(file))
        for name in imports_of(file):
            other = room_of(name)
            # The version, and where a package lies, are asked of the package itself; its face is lazy.
            of_the_package = name in ROOMS or name.endswith(".__version__")
            if other != room and not of_the_package and ORDER.index(other) > ORDER.index(room):
                wrong[f"{room} -> {other}"].add(f"{file.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """But for the rooms of the faces, where results have methods that give other results."""
    graph = {
        module_of(file): {
            module
            for name in imports_of(file)
            for module in (name, name.rpartition(".")[0])
            if (ROOT / Path(*module.split("."))).with_suffix(".py").is_file()
        }
        for file in sources("featurize", "finetune")
        if room_of(module_of(file)) not in ("featurize.jobs", "finetune.api")
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_every_room_says_what_it_is_for() -> None:
    for package, rooms in ROOMS.items():
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert folders == set(rooms)
        for room in rooms:
            text = ast.get_docstring(ast.parse((ROOT / package / room / "__init__.py").read_text()))
            assert text is not None, f"{package}.{room} has no docstring"
            assert text.split("\n\n")[0].endswith(".")


def test_only_the_ranks_import_horovod() -> None:
    importers = {
        file.relative_to(ROOT).parts[1]
        for file in sources("featurize", "finetune")
        for node in ast.walk(ast.parse(file.read_text()))
        if "horovod"
        in (
            (node.module or "").split(".")[0]
            if isinstance(node, ast.ImportFrom)
            else [alias.name.split(".")[0] for alias in getattr(node, "names", ()) if isinstance(node, ast.Import)]
        )
    }
    assert importers == {"ranks"}


@pytest.mark.parametrize("top", ["featurize", "finetune", "tests", "benchmarks", "scripts"])
def test_folders_and_files_are_small(top: str) -> None:
    files = sources(top)
    folders = {file.parent for file in files}
    crowded = {str(folder): n for folder in folders if (n := len(list(folder.glob("*.py")))) > MOST_FILES}
    long = {str(file): n for file in files if (n := len(file.read_text().splitlines())) > MOST_LINES}
    assert not crowded
    assert not long
