"""Names of files that llama.cpp, ollama and LM Studio find by a label: `Name-4.21bpw-Q4_K_S.gguf`.

`-hf user/repository:Q4_K_M` takes a file in whose name the label, in any case, stands before a dot or a dash; the hub,
which answers ollama, takes the last label in a name (`parseGGUFQuantLabel` in huggingface.js). Labels are those of
llama.cpp's mixes, and people read sizes into them. So a file gets one only if that mix of this very model has about its
bits per weight, and the exact bits stand before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from planner.errors import RecipeError
from planner.formats.ggml import formats
from planner.gguf import Model
from planner.measure import Settings
from planner.measure.inventory import take_inventory
from planner.plan.mixes import MIXES, mix_formats

__all__ = ["TOLERANCE", "Labels", "file_name", "labels_for", "model_name"]

TOLERANCE = 0.075
"""How far a file may be from its label's mix, as a share of the bits per weight: between neighbours from IQ1_S to Q6_K
there are steps of up to 15 %."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._]+")
_ENCODING = re.compile(r"[-._](f16|bf16|f32)$", re.IGNORECASE)
_FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Labels:
    """llama.cpp's mixes of one model: label → bits per weight."""

    bpw: Mapping[str, float]

    @classmethod
    def of(cls, model: Model, *, imatrix: bool) -> Labels:
        """Work out what every mix of a model would have, with an imatrix or without."""
        inventory = take_inventory(model, None, Settings())
        inventory = inventory.model_copy(update={"imatrix_digest": "known" if imatrix else None})
        elements = sum(tensor.elements for tensor in inventory.tensors)
        table, found = formats(), {}
        for mix in MIXES:
            try:
                chosen = mix_formats(inventory, mix)
            except RecipeError:  # rows that llama.cpp has no type for: it does not make that mix
                continue
            nbytes = sum(
                table[chosen[tensor.name]].tensor_bytes(tensor.shape) if tensor.name in chosen else tensor.nbytes
                for tensor in inventory.tensors
            )
            found[mix] = 8 * nbytes / elements
        return cls({**found, **{name: float(table[name.lower()].bpw) for name in _FLOATS}})

    def near(self, bpw: float, used: Collection[str]) -> list[str]:
        """Return labels within the tolerance of a file, the best first: of mixes whose main type the file uses before
        others, then by distance."""
        close = {label: abs(math.log(bpw / own)) for label, own in self.bpw.items()}
        within = [label for label, distance in close.items() if distance <= math.log1p(TOLERANCE)]
        return sorted(within, key=lambda label: (MIXES.get(label, label.lower()) not in used, close[label]))


def labels_for(labels: Labels, files: Sequence[tuple[float, Collection[str]]]) -> list[str | None]:
    """Return a label for each file, given as its bits per weight and the types that it uses; None where no mix is near,
    or where another file is nearer to it: no label is given twice."""
    wanted = [labels.near(bpw, used) for bpw, used in files]
    found: list[str | None] = [None] * len(files)
    pairs = sorted(
        (rank, abs(math.log(files[number][0] / labels.bpw[label])), number, label)
        for number, choices in enumerate(wanted)
        for rank, label in enumerate(choices)
    )
    taken: set[str] = set()
    for _, _, number, label in pairs:
        if found[number] is None and label not in taken:
            found[number] = label
            taken.add(label)
    return found


def model_name(title: str | None, stem: str) -> str:
    """Return a model's name as file names have it: its title, or else the name of its file without the encoding.

    >>> model_name("Prose 8M", "x"), model_name(None, "Name-7B-v0.1-F16"), model_name("<b>/../", "x-bf16")
    ('Prose-8M', 'Name-7B-v0.1', 'b')
    """
    for text in (title or "", _ENCODING.sub("", stem)):
        if name := _NOT_IN_NAMES.sub("-", text).strip("-._")[:100]:
            return name
    return "model"


def file_name(name: str, bpw: float, label: str | None) -> str:
    """Return the name of a file.

    >>> file_name("Name-7B", 4.2137, "Q4_K_S"), file_name("Name-7B", 7.4, None)
    ('Name-7B-4.21bpw-Q4_K_S.gguf', 'Name-7B-7.40bpw.gguf')
    """
    return f"{name}-{bpw:.2f}bpw{f'-{label}' if label else ''}.gguf"
