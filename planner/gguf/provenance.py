"""Provenance in the metadata of an output file: of constant size, so that file sizes can be promised."""

from __future__ import annotations

import re

from planner.version import __version__

__all__ = ["RECIPE_KEY", "depth_pairs", "provenance_pairs", "rounded_as", "rounding_in"]

RECIPE_KEY = "quantize.planner.recipe"
_SIZE = 64  # characters of a SHA-256
_ALONG = re.compile(r"[0-9a-f]{32} text (?P<digest>[0-9a-f]{16}) (?P<shrinkage>\S+) *")
_REFINED = re.compile(r"[0-9a-f]{32} cov (?P<digest>[0-9a-f]{16}) (?P<shrinkage>\S+) *")


def provenance_pairs(recipe: str, covariances: str = "", shrinkage: float = 0) -> list[tuple[str, str]]:
    """Return the metadata that `planner` adds to what llama-quantize writes: its version and the recipe's digest.

    Where codes were refined, half of that digest makes room for the covariances' and for λ.
    """
    if covariances:
        recipe = f"{recipe:.32} cov {covariances:.16} {shrinkage:.4g}"
    return [("quantize.planner.version", f"{__version__:<12.12}"), (RECIPE_KEY, f"{recipe:<{_SIZE}.{_SIZE}}")]


def depth_pairs(recipe: str, text: str, shrinkage: float) -> list[tuple[str, str]]:
    """Return the metadata for codes that were refined along the depth, with digests of the recipe and of the
    text that the model read, and λ."""
    return provenance_pairs(f"{recipe:.32} text {text:.16} {shrinkage:.4g}")


def rounding_in(value: str) -> str:
    """Return which rounding the provenance of a file tells of.

    >>> rounding_in(dict(provenance_pairs("ab" * 32))[RECIPE_KEY])
    "ggml's codes"
    >>> rounding_in(dict(provenance_pairs("ab" * 32, "cd" * 32, 1))[RECIPE_KEY])
    'codes refined against covariances cdcdcdcdcdcdcdcd, shrinkage 1'
    >>> rounding_in(dict(depth_pairs("ab" * 32, "ef" * 32, 1))[RECIPE_KEY])
    'codes refined along the depth by text efefefefefefefef, shrinkage 1'
    """
    if along := _ALONG.fullmatch(value):
        return f"codes refined along the depth by text {along['digest']}, shrinkage {along['shrinkage']}"
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
