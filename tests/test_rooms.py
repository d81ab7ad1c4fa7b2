"""The rule of rooms: every import points down, those inside functions and under TYPE_CHECKING too, and none closes a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "paretomerge"
FLOORS = (
    {"errors"}, {"io"}, {"decompositions", "preferences", "options"}, {"specs"}, {"weights"}, {"experts"}, {"models"}, {"data"},
    {"merges", "sets", "results"}, {"fitting", "front"}, {"evaluation"}, {"search"}, {"recipes", "report", "methods"},
    {"api"}, {"demo", "app"}, {"cli"}, {"__init__", "__main__"},
)  # fmt: skip
"""Rooms (folders) and files of the package from the ground up. Rooms on one floor do not import each other."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def name_of(file: Path) -> str:
    return ".".join(("paretomerge", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(file): file for file in SOURCE.rglob("*.py")}


def imports_of(name: str, file: Path) -> set[str]:
    """The modules of ours that a module names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {other for other in found if other in MODULES} - {name}


IMPORTS = {name: imports_of(name, file) for name, file in MODULES.items()}


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    upward = [
        other
        for other in IMPORTS[name]
        if room_of(other) not in ("__init__", room_of(name)) and FLOOR[room_of(other)] >= FLOOR[room_of(name)]
    ]
    assert not upward, f"{name} imports upwards or sideways: {', '.join(sorted(upward))}"


def test_no_circle():
    # a room's __init__ names its modules and nothing else: it is how others see the room, no part of a circle
    modules = {name: others for name, others in IMPORTS.items() if MODULES[name].name != "__init__.py"}
    try:
        tuple(TopologicalSorter(modules).static_order())
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


def test_what_the_package_offers_is_there():
    import paretomerge

    assert all(getattr(paretomerge, name) is not None for name in paretomerge.__all__)
    assert paretomerge.metrics.hypervolume([[1.0, 1.0]], [0.0, 0.0], maximise=True).value == 1.0


def test_tests_and_docs_import_from_rooms():
    """So that moving a file touches no test; what is private (``_x``) is imported from where it is."""
    root = SOURCE.parents[1]
    inner = []
    for file in (*root.glob("tests/**/*.py"), *root.glob("docs/**/*.py"), *root.glob("examples/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").count(".") > 1 and node.module in MODULES:
                inner += [f"{file.name}: {node.module}" for alias in node.names if not alias.name.startswith("_")]
    assert inner == []
