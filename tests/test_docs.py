"""The documentation is true: what it shows runs, and prints what it says."""

from __future__ import annotations

import importlib.util
import platform
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

ROOT = Path(__file__).parents[1]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_refresh", ROOT / "docs/refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


refresh = _load()
EVALUATING = ("evaluate.md", "card.md")  # pages whose figures are what llama.cpp computes
WITH_OUTPUT = [page for page in refresh.PAGES if refresh.blocks(page.read_text(encoding="utf-8"), "console")]
EVERY = sorted({*refresh.PAGES, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")})


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _like_the_pages() -> bool:
    """Other processors and releases of ggml may round otherwise, and tip a choice: there, that it runs is enough."""
    from planner.formats.ggml import library_version

    return platform.machine() in ("x86_64", "AMD64") and library_version() == refresh.documented_ggml()


@pytest.mark.parametrize("page", WITH_OUTPUT, ids=name)
def test_console_blocks_print_what_the_page_shows(page: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "workshop"
    folder.mkdir()
    workshop = refresh.Workshop.make(folder, whole)
    for block in refresh.blocks(page.read_text(encoding="utf-8"), "console"):
        for example in refresh.examples(block):
            status, output = workshop.run(example.command)
            assert status == 0, f"{example.command}\n{output}"
            if _like_the_pages():
                compared = refresh.without_decimals if page.name in EVALUATING else refresh.normalized
                assert compared(output) == compared(example.output), example.command


@pytest.mark.parametrize("page", refresh.GENERATED, ids=name)
def test_generated_parts_are_current(page: Path) -> None:
    if page.name == "formats.md" and not _like_the_pages():
        pytest.skip("the table is of another release of ggml")
    assert page.read_text(encoding="utf-8") == refresh.generated()[page], "run `python docs/refresh.py`"


@pytest.mark.parametrize("page", EVERY, ids=name)
def test_commands_in_sh_blocks_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in refresh.blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                assert words[1] in targets
            elif words[:1] == ["python"] or (words and "/" in words[0]):
                script = words[1] if words[0] == "python" else words[0]
                assert script == "-m" or (ROOT / script).exists(), line
            elif words[:1] == ["planner"]:
                _parses(words[1:])


def _parses(words: list[str]) -> None:
    """Click takes the command line: command, options and values are as they should be."""
    from planner.cli import cli

    with click.Context(cli, info_name="planner") as context:
        command = cli.get_command(context, words[0])
        assert command is not None, words
        command.make_context(words[0], words[1:], parent=context)


@pytest.mark.parametrize("page", EVERY, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_readme_fits_a_terminal() -> None:
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        assert len(line) <= 80 or line.startswith(("|", "llama-quantize ")), line


def test_every_page_of_docs_can_be_reached() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert set(ROOT.glob("docs/*.md")) <= seen


def test_every_page_with_output_is_run() -> None:
    assert {page for page in EVERY if refresh.blocks(page.read_text(encoding="utf-8"), "console")} == set(WITH_OUTPUT)


def test_a_changed_output_is_seen() -> None:
    before, after = "File  4,899,712 bytes\nproven optimal, 0.16 s", "File  4,899,744 bytes\nproven optimal, 0.20 s"
    assert refresh.normalized(before) != refresh.normalized(after)
    assert refresh.normalized(before.replace("0.16", "1.30")) == refresh.normalized(before)


def test_commands_and_outputs_are_told_apart() -> None:
    found = refresh.examples("$ planner one \\\n    --two\nout\n$ three\n\nfour\n")
    assert [(entry.command, entry.output) for entry in found] == [
        ("planner one \\\n    --two", "out"),
        ("three", "\nfour"),
    ]
