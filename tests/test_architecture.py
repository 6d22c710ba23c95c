"""Imports go one way, C types stay in one place, only the command line prints: read from the syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("planner", "solvers", "state")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
THIRD_PARTY = {"solvers": {"numpy", "ortools"}, "state": {"pydantic"}}
# Layers of planner, lowest first: a module may import from its own layer's package and from layers before it
LAYERS = [
    {"planner.errors", "planner.lastwords"},
    {"planner.closing", "planner.sizes", "planner.strangers", "planner.text"},
    {"planner.files", "planner.ggml", "planner.inputs", "planner.kinds"},
    {"planner.mlx"},
    {"planner.formats"},
    {"planner.gguf", "planner.recipes", "planner.provenance"},
    {"planner.measure"},
    {"planner.sensitivity"},
    {"planner.quantize", "planner.campaign", "planner.rules", "planner.candidates", "planner.limits", "planner.passes"}
    | {"planner.families", "planner.targets"},
    {"planner.accounting", "planner.assess", "planner.evidence"},
    {"planner.plan"},
    {"planner.report", "planner.llama"},
    {"planner.cli"},
    {"planner.__main__"},
]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Names of modules that a file imports, wherever in it; those for type checkers alone too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            for alias in node.names:  # `from planner.ggml import library` imports a module too
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def part(module: str) -> str:
    """`planner.ggml.kernels` → `planner.ggml`."""
    return ".".join(module.split(".")[:2])


def test_everything_is_found():
    assert len(FILES) > 40
    without_place = {part(name) for name in MODULES if name.startswith("planner.")} - set().union(*LAYERS)
    assert not without_place, "these have no place among LAYERS"


@pytest.mark.parametrize("package", ["solvers", "state"])
def test_solvers_and_state_stand_alone(package):
    for name, path in MODULES.items():
        if name.split(".")[0] == package:
            for imported in imports(path):
                top = imported.split(".")[0]
                assert top in {package, *THIRD_PARTY[package]} or top in sys.stdlib_module_names, (
                    f"{name} imports {imported}"
                )


def test_planner_is_built_in_layers():
    floor = {name: number for number, names in enumerate(LAYERS) for name in names}
    for name, path in MODULES.items():
        if name == "planner":
            assert not [imported for imported in imports(path) if imported != "__future__"]
            continue
        if not name.startswith("planner."):
            continue
        for imported in imports(path):
            if imported.startswith("planner."):
                same = part(imported) == part(name)
                above = floor[part(imported)] > floor[part(name)]
                assert same or not above, f"{name} imports {imported}, which is built upon it"


def test_only_plan_solves():
    allowed = {
        "planner.plan",
        "planner.cli.messages",  # whose errors become messages
    }
    found = {name for name, path in MODULES.items() if any(i.split(".")[0] == "solvers" for i in imports(path))}
    assert {name for name in found if name.startswith("planner")} <= allowed | {
        name for name in found if name.startswith("planner.report") and only_for_types(MODULES[name], "solvers")
    }


def only_for_types(path: Path, package: str) -> bool:
    """Whether a file imports a package under `if TYPE_CHECKING:` only."""
    whole = tree(path)
    guarded = {
        id(inner)
        for node in ast.walk(whole)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    return all(
        id(node) in guarded
        for node in ast.walk(whole)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package
    )


def test_nothing_imports_the_command_line():
    for name, path in MODULES.items():
        if part(name) not in ("planner.cli", "planner.__main__"):
            assert not [imported for imported in imports(path) if part(imported) == "planner.cli"], name


def test_only_the_command_line_prints_or_exits():
    forbidden = {"print", "sys.exit", "exit", "quit", "os._exit", "input", "click.echo", "sys.stdout.write"}
    for name, path in MODULES.items():
        if part(name) == "planner.cli":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in forbidden, f"{name}:{node.lineno}"
            if isinstance(node, ast.Raise) and node.exc is not None:
                assert "SystemExit" not in ast.unparse(node.exc), f"{name}:{node.lineno}"
        assert "click" not in {imported.split(".")[0] for imported in imports(path)}, name


def test_only_ggml_and_the_engine_have_c_types():
    found = {name for name, path in MODULES.items() if {"ctypes", "cffi"} & {i.split(".")[0] for i in imports(path)}}
    assert found == {"planner.ggml.library", "planner.llama.engine", "planner.llama.library"}


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_says_what_it_exports(name):
    module = import_module(name)
    body = tree(MODULES[name]).body
    exported = list(getattr(module, "__all__", []))
    if name == "planner.cli.__main__" or (not exported and "__all__" not in module.__dict__):
        assert not [n for n in public(body) if not MODULES[name].name.startswith("_")], f"{name} has no __all__"
        return
    # constants, classes, functions: ruff's RUF022
    kinds = [(0 if entry.isupper() else 1 if entry[0].isupper() else 2, entry) for entry in exported]
    assert kinds == sorted(kinds), f"{name}.__all__ is not sorted"
    assert len(exported) == len(set(exported))
    for entry in exported:
        assert hasattr(module, entry), f"{name}.__all__ names {entry}, which is not there"


def public(body: list[ast.stmt]) -> list[str]:
    """Functions and classes defined at the top of a module whose names say that they are for others."""
    return [
        node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name != "__init__.py"])
def test_what_others_import_is_exported(name):
    """Nothing is taken from a module that it does not offer."""
    for node in ast.walk(tree(MODULES[name])):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES and node.level == 0:
            offered = getattr(import_module(node.module), "__all__", [])
            for alias in node.names:
                if f"{node.module}.{alias.name}" not in MODULES and alias.name != "__version__":
                    assert alias.name in offered, f"{name} imports {alias.name}, which {node.module} does not export"


def test_errors_are_a_tree_with_one_root():
    from planner import errors

    for entry in errors.__all__:
        kind = getattr(errors, entry)
        assert issubclass(kind, errors.PlannerError)
        assert str(kind("what", "what next")) == "what\nwhat next"
        assert str(kind("what")) == "what"
    assert errors.PlannerError("").exit_status == 1
    assert errors.UsageError("").exit_status == 2
    assert errors.Interrupted("").exit_status == 130
