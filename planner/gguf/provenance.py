"""Provenance in the metadata of an output file: of constant size, so that file sizes can be promised."""

from __future__ import annotations

import re

from planner.version import __version__

__all__ = ["RECIPE_KEY", "provenance_pairs", "rounded_as", "rounding_in"]

RECIPE_KEY = "quantize.planner.recipe"
_SIZE = 64  # characters of a SHA-256
_REFINED = re.compile(r"[0-9a-f]{32} cov (?P<digest>[0-9a-f]{16}) (?P<shrinkage>\S+) *")


def provenance_pairs(recipe: str, covariances: str = "", shrinkage: float = 0) -> list[tuple[str, str]]:
    """Return the metadata that `planner` adds to what llama-quantize writes: its version and the recipe's digest.

    Where codes were refined, half of that digest makes room for the covariances' and for λ.
    """
    if covariances:
        recipe = f"{recipe:.32} cov {covariances:.16} {shrinkage:.4g}"
    return [("quantize.planner.version", f"{__version__:<12.12}"), (RECIPE_KEY, f"{recipe:<{_SIZE}.{_SIZE}}")]


def rounding_in(value: str) -> str:
    """Return which rounding the provenance of a file tells of.

    >>> rounding_in(dict(provenance_pairs("ab" * 32))[RECIPE_KEY])
    "ggml's codes"
    >>> rounding_in(dict(provenance_pairs("ab" * 32, "cd" * 32, 1))[RECIPE_KEY])
    'codes refined against covariances cdcdcdcdcdcdcdcd, shrinkage 1'
    """
    found = _REFINED.fullmatch(value)
    if found is None:
        return "ggml's codes"
    return f"codes refined against covariances {found['digest']}, shrinkage {found['shrinkage']}"


def rounded_as(value: str, covariances: str = "", shrinkage: float = 0) -> bool:
    """Return whether the provenance of a file tells of codes that were refined against covariances of this digest, with
    this shrinkage; without a digest, whether of none.

    >>> value = dict(provenance_pairs("ab" * 32, "cd" * 32, 1))[RECIPE_KEY]
    >>> rounded_as(value, "cd" * 32, 1), rounded_as(value, "cd" * 32, 0.5), rounded_as(value), rounded_as("")
    (True, False, False, True)
    """
    any_recipe = "0" * _SIZE
    return rounding_in(value) == rounding_in(dict(provenance_pairs(any_recipe, covariances, shrinkage))[RECIPE_KEY])
