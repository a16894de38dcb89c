"""Packages and rooms import downward only, and no two rooms import each other."""

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGES = ("dino_oct", "supervised", "evaluation")
FLOORS = (
    "config",
    "scores",
    "inputs",
    "maps",
    "pages",
    "protocols",
    "report",
    "api",
)  # of evaluation, from the ground up
COMMANDS = "commands"


def imports() -> dict[str, set[str]]:
    """Module → modules of this repository that it imports, wherever in its code."""
    modules = {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts): file
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*.py")
    }
    arrows = {}
    for name, file in modules.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        arrows[name] = (names & modules.keys()) - {name}
    return arrows


def room(module: str) -> str:
    """The room of ``evaluation`` that a module is in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or parts[1] == "config" else COMMANDS


def test_packages_import_downward():
    for module, others in imports().items():
        floor = PACKAGES.index(module.split(".")[0])
        upward = {other for other in others if PACKAGES.index(other.split(".")[0]) > floor}
        assert not upward, f"{module} imports {upward}"


def test_rooms_of_evaluation_import_downward():
    floors = [*FLOORS, COMMANDS]
    for module, others in imports().items():
        if module.startswith("evaluation."):
            inside = {other for other in others if other.startswith("evaluation.")}
            upward = {other for other in inside if floors.index(room(other)) > floors.index(room(module))}
            assert not upward, f"{module} imports {upward}"


def test_a_command_holds_nothing_but_its_door():
    """Its work is in a room, so that a command is read at a glance and imports nothing before its options are read."""
    for file in (REPOSITORY / "evaluation").glob("*.py"):
        if file.stem not in ("__init__", "config"):
            body = ast.parse(file.read_text()).body
            assert [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))] == ["main"], file


def rooms() -> dict[str, set[str]]:
    """Room → rooms that it imports, where a folder is one room and so is a file beside the folders."""

    def room_of(module: str) -> str:
        return ".".join(module.split(".")[:2])

    graph = {}
    for module, others in imports().items():
        graph.setdefault(room_of(module), set()).update(map(room_of, others))
    return {name: others - {name} for name, others in graph.items()}


@pytest.mark.parametrize("walls", [imports, rooms])
def test_no_two_import_each_other(walls):
    """No circle of any length."""
    graph, order, state = walls(), [], {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != "open", " → ".join((*path, name))
        if name in state:
            return
        state[name] = "open"
        for other in sorted(graph[name]):
            visit(other, (*path, name))
        state[name] = "done"
        order.append(name)

    for name in graph:
        visit(name, ())
    assert len(order) == len(graph)


def test_the_walk_finds_an_import_inside_a_function():
    """The tests above could not fail otherwise."""
    assert "evaluation.protocols.knn" in imports()["evaluation.knn"]
    assert Path(REPOSITORY / "evaluation" / "knn.py").is_file()
