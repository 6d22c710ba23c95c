"""Imports go one way, module by module; C types stay in one place; only the command line prints; the map is true."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import click
import pytest

from planner.cli import cli

ROOT = Path(__file__).parents[1]
PACKAGES = ("planner", "solvers", "state")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
THIRD_PARTY = {"solvers": {"numpy", "ortools"}, "state": {"pydantic"}}
# Every module, the lowest first: a folder and the modules in it. A module imports only from those before it
ORDER = (
    (
        "solvers",
        "errors arrays choices limits problem check reduction bound core task completion dual greedy integers search "
        "cpsat milp solution run methods conflicts driver explanation sweep lightest __init__",
    ),
    ("state", "errors lock migrations records rows schema connection store __init__"),
    ("planner", "closing digests errors lastwords files memory sizes terms text version"),
    ("planner.inputs", "strangers kinds reading __init__"),
    ("planner.compiled", "compiler lanes loading __init__"),
    ("planner.formats.ggml", "library ik_library types formats file_types foreign reference"),
    (
        "planner.formats.ggml.fast",
        "halves blocks fits iq4 qkx qx grids search splits iq1 iq1m iq2 iq3 agreement __init__",
    ),
    ("planner.formats.ggml", "kernels __init__"),
    ("planner.formats.ggml.refine", "bits fields layouts lattices codes products kernels rows __init__"),
    ("planner.formats.mlx", "formats kernels __init__"),
    ("planner.names", "gguf transformers mlx __init__"),
    ("planner.formats", "family families registry __init__"),
    ("planner.work", "crew shared machines __init__"),
    ("planner.fit", "parameters layers context compute needs __init__"),
    (
        "planner.gguf",
        "entry legacy llama_cpp metadata contents provenance tensor reader container model drafts encoder parameters "
        "health reach imatrix products correction covariance layout refinement rounded conversion quantize sums "
        "imatrix_writer covariance_writer vocabulary __init__",
    ),
    ("planner.recipe", "recipe recount __init__"),
    (
        "planner.dialects",
        "patterns regex_syntax regex dialect rules auto_round evopress rco mlx_lm shell llama_quantize "
        "ik_llama table tool_suite registry exports imports __init__",
    ),
    ("planner.sensitivity", "parts rounding facts confidence design link measured prior structure sources __init__"),
    (
        "planner.plan",
        "drafts losses findings rules candidates families limits conflicts cards accounting assess mixes prediction "
        "target request arrangement sweep plan rivals gain curve ladder offer __init__",
    ),
    (
        "planner.measure",
        "anatomy activation_moments moments sampling compiled_sums sums survey experts inner energies metric loop "
        "inventory rounding targets campaign __init__",
    ),
    ("planner.evidence", "bpw_state kld_table add __init__"),
    ("planner.importing", "source basis recipes measurements __init__"),
    ("planner.llama", "library fitness graph workers drafts loaded engine branches text __init__"),
    (
        "planner.llama.collect",
        "activations stream checkpoint collector inputs ending multiplier passes trial rendering chat run template "
        "__init__",
    ),
    (
        "planner.llama.evaluate",
        "bench logprobs baseline answers chats divergence compare cache statistics results frontier trajectories "
        "prompts taskfiles tasks mmlu __init__",
    ),
    (
        "planner.llama.passes",
        "kld calibrate weights perturb polish trials recipes check paths noise twins reach __init__",
    ),
    ("planner.llama.rounding", "seen block rounder depth __init__"),
    ("planner.report", "columns pages curve chart checks difference evaluation memory results tables __init__"),
    ("planner.report.inspection", "imatrix metadata model recipe state __init__"),
    ("planner.report.comparison", "tables page __init__"),
    ("planner.report.card", "front labels readme __init__"),
    ("planner.report.page", "memory data page __init__"),
    (
        "planner.api",
        "common depth recipes others refining quants evaluating evaluate compare card quantize state __init__",
    ),
    ("planner", "__init__"),
    (
        "planner.cli",
        "messages options card diff export importing progress inspect measure quantize running bench evaluating "
        "evaluate compare imatrix sensitivity fitting solving targeting checking report solve frontier terminal child "
        "watch __init__",
    ),
    ("planner", "__main__"),
)
# What is slow to load, and that a command does not wait for before it knows what it is to do
SLOW = {
    "dask",
    "distributed",
    "gguf",
    "joblib",
    "llama_cpp",
    "llvmlite",
    "matplotlib",
    "numba",
    "numpy",
    "ortools",
    "pydantic",
    "rich",
}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60
LONGER: dict[str, int] = {}  # and ought not to be


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert node.level == 0, f"line {node.lineno} imports relatively"
    assert node.module is not None
    for alias in node.names:  # `from planner.report import columns` imports a module too
        full = f"{node.module}.{alias.name}"
        yield full if full in MODULES else node.module


def imports(path: Path) -> Iterator[str]:
    """Names of modules that a file imports, wherever in it; those for type checkers alone too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from names(node)


def loaded(module: str, seen: set[str] | None = None) -> set[str]:
    """All that importing a module loads by statements at the top of files: ours, and others by their first names."""
    seen = set() if seen is None else seen
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        seen.add(parts[0])
        return seen
    for length in range(1, len(parts) + 1):  # packages first, as Python does
        name = ".".join(parts[:length])
        if name in MODULES and name not in seen:
            seen.add(name)
            for node in tree(MODULES[name]).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    for imported in names(node):
                        loaded(imported, seen)
    return seen


def in_order() -> list[str]:
    return [f"{folder}.{name}".removesuffix(".__init__") for folder, members in ORDER for name in members.split()]


def part(module: str) -> str:
    """`planner.gguf.reader` → `planner.gguf`."""
    return ".".join(module.split(".")[:2])


def test_every_module_has_its_place():
    assert len(FILES) > 40
    assert len(set(in_order())) == len(in_order())
    assert set(in_order()) == set(MODULES)


def test_imports_go_one_way():
    place = {name: number for number, name in enumerate(in_order())}
    for name, path in MODULES.items():
        for imported in imports(path):
            if imported in MODULES:
                assert place[imported] < place[name], f"{name} imports {imported}, which is built upon it"


@pytest.mark.parametrize("package", ["solvers", "state"])
def test_solvers_and_state_stand_alone(package):
    for name, path in MODULES.items():
        if name.split(".")[0] == package:
            for imported in imports(path):
                top = imported.split(".")[0]
                assert top in {package, *THIRD_PARTY[package]} or top in sys.stdlib_module_names, (
                    f"{name} imports {imported}"
                )


def test_only_plan_solves():
    allowed = {
        "planner.plan.plan",
        "planner.cli.messages",  # whose errors become messages
        "planner.cli.solving",  # whose methods are listed
    }
    found = {name for name, path in MODULES.items() if any(i.split(".")[0] == "solvers" for i in imports(path))}
    assert {name for name in found if name.startswith("planner")} <= allowed | {
        name
        for name in found
        if name.startswith(("planner.report", "planner.plan")) and only_for_types(MODULES[name], "solvers")
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


def test_only_the_libraries_have_c_types():
    found = {name for name, path in MODULES.items() if {"ctypes", "cffi"} & {i.split(".")[0] for i in imports(path)}}
    llama = {"planner.llama.graph", "planner.llama.library", "planner.llama.drafts", "planner.llama.loaded"}
    assert found == {"planner.formats.ggml.library", "planner.formats.ggml.ik_library", *llama}


def test_help_waits_for_nothing():
    assert loaded("planner") == {"planner", "planner.version", "__future__", "importlib", "typing"}
    for name in MODULES:
        if part(name) == "planner.cli":
            assert not loaded(name) & SLOW, name


def test_a_plan_from_the_state_does_not_wait_for_the_model():
    found = set().union(*map(loaded, ("planner.plan.plan", "planner.plan.rules", "planner.recipe", "planner.report")))
    assert not found & {"gguf", "joblib", "llama_cpp"}
    assert not {part(name) for name in found} & {"planner.gguf", "planner.llama", "planner.measure"}


def test_families_are_asked_and_not_compared():
    """A difference between families is an attribute or a method of theirs."""
    for name, path in MODULES.items():
        # a recipe's JSON leaves `gguf` out; dialects say what they know of which family
        may = name == "planner.recipe.recipe" or name.startswith("planner.dialects.")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare) and not may:
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                families = {"'gguf'", "'mlx'"} if "dialect" in sides else {"'gguf'", "'ik_llama'", "'mlx'"}
                assert not families & set(sides), f"{name}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                assert ast.unparse(node.args[1]) != "Affine", f"{name}:{node.lineno}"


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


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short(name):
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= LONGER.get(name, MOST_LINES), f"{name} has {lines} lines"
    for node in ast.walk(tree(MODULES[name])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONGER.get(f"{name}.{node.name}", MOST_LINES_OF_A_FUNCTION), (
                f"{name}.{node.name} has {lines} lines"
            )


# What runs in a shell: commands between backticks, and those that a sentence ends with
_COMMANDS = re.compile(r"`[^`]*`|\b(?:planner [a-z]+|llama-[a-z]+)(?: (?:MODEL|RECIPE|--[a-z-]+|FILE|mlx-lm|\.\.\.))*")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a module, with their lines: no docstrings, no keys of dictionaries, no words of command lines, which
    are elements of lists and tuples or arguments of `command`."""
    whole = tree(path)
    passed_over, words = set(), set()
    for node in ast.walk(whole):
        if isinstance(node, ast.Expr):
            passed_over.add(node.value)
        elif isinstance(node, ast.Dict):
            passed_over |= set(node.keys)
        elif isinstance(node, ast.List | ast.Tuple):
            words |= set(node.elts)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "command":
            words |= set(node.args)
    for node in ast.walk(whole):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in passed_over:
            a_word = node in words and " " not in node.value
            if not a_word:
                yield node.lineno, node.value


def options_of_commands() -> dict[str, set[str]]:
    """Parameter → how the commands spell it."""
    found: dict[str, set[str]] = {}
    with click.Context(cli) as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            for word in (word for parameter in command.params for word in parameter.opts):
                found.setdefault(word.lstrip("-").replace("-", "_"), set()).add(word)
    return found


def test_only_the_command_line_spells_options():
    """A program that imports planner has parameters and no options: messages call them by `option`."""
    ours = {word for words in options_of_commands().values() for word in words if word.startswith("--")}
    for name, path in MODULES.items():
        if part(name) != "planner.cli":
            for line, text in texts(path):
                found = set(re.findall(r"--[a-z][a-z-]*", _COMMANDS.sub("", text)))
                assert not found & ours, f"{name}:{line}: {text}"


def test_messages_call_options_that_there_are():
    known = options_of_commands()
    for name, path in MODULES.items():
        if "option" not in {
            alias.name for node in ast.walk(tree(path)) if is_from_errors(node) for alias in node.names
        }:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "option":
                called = node.args[0]
                assert not isinstance(called, ast.Constant) or called.value in known, f"{name}:{node.lineno}"
        for node in tree(path).body:  # in functions alone, as how they are spelt depends on who reads
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert "option(" not in ast.unparse(node), f"{name}:{node.lineno}"


def is_from_errors(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "planner.errors"


def entries_of_the_map() -> list[str]:
    """Folders (with a slash at the end) and files in the map of docs/design.md, from top to bottom."""
    house = (ROOT / "docs/design.md").read_text(encoding="utf-8").split("\n## The house\n")[1].split("\n## ")[0]
    above: list[str] = []
    entries: list[str] = []
    for line in house.splitlines():
        if line.startswith("    "):
            depth = (len(line) - len(line.lstrip())) // 2 - 2
            above = [*above[:depth], line.split()[0]]
            entries.append("".join(above))
    return entries


def test_the_map_shows_the_tree():
    entries = entries_of_the_map()
    assert len(entries) == len(set(entries))
    for entry in entries:
        assert (ROOT / entry).is_dir() if entry.endswith("/") else (ROOT / entry).is_file(), entry
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in FILES}
    loose = {f"planner/{path.name}" for path in (ROOT / "planner").glob("[!_]*.py")}
    assert {entry for entry in entries if entry.split("/")[0] in PACKAGES} == folders | loose


def test_the_map_shows_the_order():
    """Among its neighbours, a folder stands above those that it imports from."""
    folders = list(dict.fromkeys(folder.replace(".", "/") + "/" for folder, _ in ORDER if folder != "planner"))
    place = {folder: number for number, folder in enumerate(folders)}
    for parent in {str(Path(folder).parent) for folder in folders} - {"."}:
        shown = [entry for entry in entries_of_the_map() if entry in place and str(Path(entry).parent) == parent]
        assert shown == sorted(shown, key=lambda entry: -place[entry]), f"in {parent}"


def test_errors_are_a_tree_with_one_root():
    from planner import errors

    for entry in errors.__all__:
        kind = getattr(errors, entry)
        if not isinstance(kind, type):
            continue
        assert issubclass(kind, errors.PlannerError)
        assert str(kind("what", "what next")) == "what\nwhat next"
        assert str(kind("what")) == "what"
    assert errors.PlannerError("").exit_status == 1
    assert errors.UsageError("").exit_status == 2
    assert errors.Interrupted("").exit_status == 130
