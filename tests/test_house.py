"""The structure of the package: short functions and files, and rooms that know nothing of those above them."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

FILES = sorted([*(ROOT / "maml_rl").rglob("*.py"), *(ROOT / "envs").glob("*.py")])
IDS = [str(path.relative_to(ROOT)) for path in FILES]
# From the ground up. A room imports only from rooms before it.
FLOORS = [
    *("errors", "zoo", "config", "ranks", "envs", "process", "policies", "sampling", "maml", "rl2", "methods"),
    *("runs", "results", "recording", "training", "meta_policy", "hub", "sweep", "commands", "cli", "__main__"),
]


def room_of(path):
    """The sub-package or the module of the first level."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "envs" else parts[1]


def imported_rooms(path):
    """The rooms of the package that a file imports from, also inside functions and for type checkers."""
    package = ("maml_rl", *path.relative_to(ROOT / "maml_rl").parts[:-1]) if "maml_rl" in path.parts else ("envs",)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = [*base, *(node.module or "").split(".")] if node.module else list(base)
            if target == ["maml_rl"]:  # `from .. import __version__`, or a module by name
                yield from (alias.name for alias in node.names if alias.name in FLOORS)
            else:
                yield target[1] if target[0] == "maml_rl" else "envs"
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not [name for name in names if (name or "").split(".")[0] == "maml_rl"], f"{path}: not relative"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_and_functions_are_short(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            if (room_of(path), node.name) == ("training", "train"):
                assert node.end_lineno - node.lineno < 45


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_rooms_import_from_below_only(path):
    room = room_of(path)
    if room == "__init__":  # the front door names everything
        return
    for other in imported_rooms(path):
        assert other == room or FLOORS.index(other) < FLOORS.index(room), f"{room} imports {other}"


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == {*FLOORS, "__init__"}


def test_rl2_is_named_in_its_own_file_the_registry_and_the_options_only():
    named = {
        str(path.relative_to(ROOT / "maml_rl"))
        for path in (ROOT / "maml_rl").rglob("*.py")
        if re.search(r"rl2|GRU|recurrent", _code(path), re.IGNORECASE)
    }
    assert named == {"rl2.py", "methods.py", "config.py"}


def _code(path):
    """A file without docstrings and comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [
                part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ] or [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import maml_rl", ("torch", "mujoco", "scipy", "matplotlib", "PIL")),
        ("import maml_rl.cli", ("torch", "mujoco", "scipy", "matplotlib", "tensorboard")),
        ("from maml_rl import Config", ("torch", "mujoco")),
        ("import maml_rl.training", ("scipy", "matplotlib", "mujoco", "sympy")),
    ],
)
def test_imports_are_light(statement, absent):
    script = f"import sys; {statement}; print(*(name for name in {absent} if name in sys.modules))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not printed.strip()
