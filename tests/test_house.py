"""Which room may import which: read from the code itself."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "composer_distill"
# From the roof to the ground: a room imports what stands behind it, and nothing before it.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("demo",),
    ("config",),
    ("distillation", "on_policy"),
    ("training",),
    ("terms",),
    ("telemetry", "students"),
    ("teachers",),
    ("caching",),
    ("losses", "weights", "schedule"),
    ("notes", "threads", "planning"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HALL = "__init__"  # hands the public names on, so that it knows those of any room


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """The rooms that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            named = node.module == "composer_distill"
            names = [f"{node.module}.{a.name}" for a in node.names] if named else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "composer_distill" and parts[1] in FLOOR:
                yield parts[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_downwards(path):
    room = room_of(path)
    if room == HALL:
        return
    for other in imported_rooms(path):
        allowed = other == room or FLOOR[other] > FLOOR[room]
        assert allowed, f"{room} imports {other}"


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms == {*FLOOR, HALL}


def test_no_file_has_outgrown_its_room():
    lengths = {
        p.relative_to(PACKAGE): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")
    }
    assert {path: lines for path, lines in lengths.items() if lines > 300} == {}


def length(function):
    """How many lines a function has, its decorators and its docstring left out."""
    first = function.body[0]
    told = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return function.end_lineno - function.lineno + 1 - told


def is_kernel(function):
    """Whether Triton compiles a function, whose loops over a row share what is in registers."""
    return any("triton" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_no_function_has_outgrown_its_file():
    lengths = {
        f"{path.relative_to(PACKAGE)}: {node.name}": length(node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_kernel(node)
    }
    assert {name: lines for name, lines in lengths.items() if lines > 40} == {}
