"""The text of a card: its front matter, a table of files, how to run them, and how they were made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.fit import Beside, Context
from planner.formats.registry import family_named
from planner.llama.evaluate.results import Compared
from planner.recipe import Recipe
from planner.report.card.front import Facts, front_matter
from planner.report.card.labels import TOLERANCE
from planner.report.evaluation import measured
from planner.report.tables import role_table
from planner.sizes import format_size
from planner.text import command, plain
from planner.version import __version__

__all__ = ["Card", "Entry", "Room", "readme"]

_MEMORIES = (2, 3, 4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512)  # GiB
_SPECIAL = re.compile(r"([\\`*_\[\]<>#!|~&:])")


@dataclass(frozen=True)
class Entry:
    """One file: what it is `called` in the repository, where it or its recipe is now (`given`), how many bytes of it
    lie `on_card`, its label if it has one, how it was made, as far as that is known, and how it was evaluated."""

    called: str
    given: Path
    bytes: int
    on_card: int
    bpw: float
    label: str | None
    recipe: Recipe | None
    result: Compared | None


@dataclass(frozen=True)
class Room:
    """What a graphics card is to hold `beside` the weights, for a `context`; `notes` say what to know of that."""

    context: Context
    beside: Beside
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """All that a card says. `repository` and `dataset` are ORG/NAME; `pipeline` what the hub files the model under;
    `room` is None for another engine than llama.cpp; `windows` and `context` are of the evaluation, if there is one."""

    name: str
    facts: Facts
    entries: Sequence[Entry]
    quantized_by: str | None = None
    repository: str | None = None
    dataset: str | None = None
    pipeline: str | None = None
    room: Room | None = None
    context: int = 0
    windows: int = 0


def readme(card: Card) -> str:
    """Lay out the card. Texts of the model's metadata are escaped, for YAML and for Markdown."""
    blocks = [_front(card), *_introduction(card), _table(card), *_notes(card)]
    if card.entries[0].recipe is None or family_named(card.entries[0].recipe.family).in_llama_cpp:
        blocks += _running(card)
    blocks += _making(card)
    return "\n\n".join(blocks) + "\n"


def _front(card: Card) -> str:
    facts, mlx = card.facts, _is_exported(card)
    tags = ["mlx" if mlx else "gguf", "quantized"]
    if any(entry.recipe is not None and entry.recipe.imatrix for entry in card.entries):
        tags.append("imatrix")
    tags += ["conversational"] if facts.chats else []
    return front_matter({
        "base_model": facts.base_model,
        "base_model_relation": "quantized" if facts.base_model else None,
        "quantized_by": card.quantized_by,
        "license": facts.license,
        "license_name": facts.license_name if facts.license == "other" else None,
        "license_link": facts.license_link if facts.license == "other" else None,
        "language": list(facts.languages),
        "library_name": "mlx" if mlx else None,
        "pipeline_tag": card.pipeline,
        "datasets": [card.dataset] if card.dataset else [],
        "tags": list(dict.fromkeys([*tags, *facts.tags])),
    })  # fmt: skip


def _is_exported(card: Card) -> bool:
    return any(entry.recipe and family_named(entry.recipe.family).exported_to for entry in card.entries)


def _introduction(card: Card) -> list[str]:
    title = _text(card.facts.title or card.name)
    kind = "MLX" if _is_exported(card) else "GGUF"
    origin = card.facts.base_model
    of = f"[{_text(origin)}](https://huggingface.co/{origin})" if origin else title
    return [
        f"# {title}, {kind}",
        f"Quantized files of {of}. Every tensor has a type of its own, chosen so that a file of its size loses as "
        "little as possible.",
    ]


def _table(card: Card) -> str:
    evaluated = any(entry.result for entry in card.entries)
    head = ["size", "bpw", *(["mean KLD", "99 %", "99.9 %", "same top"] if evaluated else [])]
    head += ["memory"] if card.room else []
    rows = [f"| file | {' | '.join(head)} |", f"|---|{'---:|' * len(head)}"]
    for entry in sorted(card.entries, key=lambda each: each.bytes):
        cells = [format_size(entry.bytes), f"{entry.bpw:.3f}", *(_figures(entry) if evaluated else ())]
        if card.room is not None:
            cells.append(_memory(entry.on_card + card.room.beside.total))
        rows.append(f"| `{entry.called}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _figures(entry: Entry) -> tuple[str, str, str, str]:
    if entry.result is None:
        return "", "", "", ""
    found = entry.result.statistics
    memory = "\\*" if entry.result.in_memory else ""
    return (
        f"{measured(found.kld.value, found.kld.error)}{memory}", f"{found.kld_99:.3g}", f"{found.kld_999:.3g}",
        f"{100 * found.same_top.value:.2f} %",
    )  # fmt: skip


def _memory(nbytes: int) -> str:
    """Return the smallest usual memory that holds so many bytes; nothing where none does."""
    return next((f"{size} GiB" for size in _MEMORIES if nbytes <= size * 2**30), "")


def _notes(card: Card) -> list[str]:
    said = ["*bpw* is bits of tensor data per weight."]
    if card.room is not None:
        said.append(_assumed(card.room))
    if any(entry.result for entry in card.entries):
        said.append(
            "*KLD* is the Kullback-Leibler divergence of predictions from the original's, in nats a token, its mean, "
            f"99th and 99.9th percentile, over {card.windows:,} windows of {card.context:,} tokens; *same top* how "
            "often both find the same token most likely."
        )
    if any(entry.result and entry.result.in_memory for entry in card.entries):
        said.append("\\* The recipe was evaluated in memory, not its file.")
    if any(entry.label for entry in card.entries):
        said.append(
            "The label at the end of a name is that of llama.cpp's mix that is near in bits per weight, worked out for "
            f"this model, and at most {100 * TOLERANCE:g} % away: the file is not that mix, but of about its size."
        )
    return said


def _assumed(room: Room) -> str:
    """Say what a memory is to hold."""
    context, beside = room.context, room.beside
    parts = [
        "weights, without the embeddings that llama.cpp keeps in RAM",
        *([f"{format_size(beside.kv)} of keys and values in {context.kv[0]}"] if beside.kv else []),
        *([f"{format_size(beside.state)} of recurrent state"] if beside.state else []),
        f"{format_size(beside.compute)} to compute in",
    ]
    more = f" Every token more takes {beside.per_token:,} bytes." if beside.per_token else ""
    return (
        "*memory* is that of the smallest usual graphics card that holds all layers and a context of "
        f"{context.tokens:,} tokens: {', '.join(parts)}, and {format_size(beside.reserve)} left free.{more}"
    )


def _running(card: Card) -> list[str]:
    repository = card.repository or "USER/REPOSITORY"
    labelled = [entry for entry in card.entries if entry.label]
    if not labelled:
        return []
    # as near the default, Q4_K_M, as there is
    one = min(labelled, key=lambda entry: (entry.label != "Q4_K_M", abs(entry.bpw - 4.9))).label
    lines = [
        command("llama-server", "-hf", f"{repository}:{one}"), command("ollama", "run", f"hf.co/{repository}:{one}")
    ]  # fmt: skip
    return ["## Run", _fenced(lines)]


def _making(card: Card) -> list[str]:
    lines = []
    for entry in card.entries:
        recipe = entry.recipe
        if recipe is None:
            lines.append(
                command("planner", "import", Path(entry.called), "-o", Path(f"{Path(entry.called).stem}.json"))
            )
            continue
        dialect = family_named(recipe.family).exported_to
        model, given = Path(Path(recipe.model.path).name), Path(entry.given.name)
        if dialect is not None:
            lines.append(command("planner", "export", given, "--to", dialect))
        else:
            lines.append(command("planner", "quantize", model, given, Path(entry.called)))
    blocks = ["## Make them again", _sources(card), _fenced(lines)]
    for entry in card.entries:
        if entry.recipe is not None:
            table = role_table(entry.recipe)
            blocks.append(
                f"<details><summary>Types in {entry.called}</summary>\n\n{_fenced([table], 'text')}\n\n</details>"
            )
    return blocks


def _sources(card: Card) -> str:
    """Say what recipes were made of."""
    recipes = [entry.recipe for entry in card.entries if entry.recipe is not None]
    said = [f"Made with `planner` {__version__}."]
    if not recipes:
        return f"{said[0]} The types of a file's tensors are in the file: they make a recipe."
    imatrices = {(Path(recipe.imatrix.path).name, recipe.imatrix.digest) for recipe in recipes if recipe.imatrix}
    for name, digest in sorted(imatrices):
        said.append(f"Importance matrix: {_text(name)} (SHA-256 of its values begins with {digest[:12]}).")
    if not imatrices:
        said.append("No importance matrix.")
    covariances = {(Path(one.covariance.path).name, one.covariance.digest) for one in recipes if one.covariance}
    for name, digest in sorted(covariances):
        said.append(f"Codes are refined against the covariances {_text(name)} ({digest[:12]}).")
    sources = sorted({recipe.sensitivity for recipe in recipes})
    said.append(f"Sensitivities: {_text(', '.join(sources))}. Budgets: {_text('; '.join(r.budget for r in recipes))}.")
    return " ".join(said)


def _fenced(lines: Sequence[str], language: str = "sh") -> str:
    """Return lines as a block of code, behind a fence that is longer than any in them."""
    text = "\n".join(plain(line, keep="\n") for line in lines)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _text(text: str) -> str:
    """Escape a text for a line of Markdown: it is shown as it is, whatever is in it."""
    return _SPECIAL.sub(r"\\\1", plain(text))
