"""Rounding along the depth, as `quantize` is asked for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.api.common import Progress, check_number
from planner.digests import recipe_digest
from planner.errors import UsageError, option
from planner.formats.ggml import Format
from planner.formats.ggml.refine import SHRINKAGE, require_compiler
from planner.gguf import Imatrix, Model
from planner.gguf.provenance import depth_pairs
from planner.gguf.refinement import Refinement
from planner.gguf.rounded import Rounded
from planner.inputs.reading import read_text
from planner.text import plain, some

__all__ = ["AlongDepth"]

Tell = Callable[[str], None]


@dataclass(frozen=True)
class AlongDepth:
    """`texts` that a model reads, at most `chunks` windows of each. `reading` is told the blocks that are done."""

    texts: Sequence[Path]
    chunks: int | None
    shrinkage: float
    threads: int | None
    reading: Progress | None

    @classmethod
    def asked(
        cls,
        texts: Sequence[Path],
        chunks: int | None,
        shrinkage: float | None,
        threads: int | None,
        reading: Progress | None,
    ) -> AlongDepth | None:
        """Return what was asked for; None without texts. Raises UsageError for numbers out of range or without texts,
        KernelError where nothing can compile the loops."""
        check_number("chunks", chunks, 1)
        if chunks is not None and not texts:
            raise UsageError(f"{option('chunks')} is of a text, and there is none.", f"Give {option('text', 'FILE')}.")
        if not texts:
            return None
        require_compiler()
        strength = SHRINKAGE if shrinkage is None else shrinkage
        return cls(tuple(texts), chunks, strength, threads, reading)

    def provenance(self, formats: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return what the file's metadata say. Raises UsageError for a text that cannot be read."""
        sha = hashlib.sha256(f"{self.chunks}".encode())
        for path in self.texts:
            sha.update(f"\0{read_text(path, UsageError, exact=True)}".encode("utf-8", "surrogateescape"))
        return depth_pairs(recipe_digest(formats), sha.hexdigest(), self.shrinkage)

    def ahead(
        self, model: Model, imatrix: Imatrix | None, refinement: Refinement | None, tell: Tell
    ) -> Callable[[Rounded, Mapping[str, Format]], None]:
        """Return what rounds a model's tensors before its file is written, and tells of those that are not refined."""
        from planner.llama.rounding.depth import round_along_depth
        from planner.llama.rounding.rounder import DepthRequest

        def advance(what: str, done: int, total: int) -> None:
            if self.reading is not None:
                self.reading(what, done, total)

        def work(rounded: Rounded, formats: Mapping[str, Format]) -> None:
            texts = tuple(self.texts)
            request = DepthRequest(
                model, formats, imatrix, refinement, texts, self.chunks, self.shrinkage, self.threads
            )
            round_along_depth(request, rounded, advance)
            left = [name for name, fmt in formats.items() if fmt.quantized and name not in rounded]
            kept = [name for name in left if not (refinement and refinement.applies(model[name], formats[name]))]
            if kept:
                tell(plain(f"Not refined, as they come before all blocks or cannot be: {some(kept)}."))

        return work
