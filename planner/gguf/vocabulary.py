"""Checks of a model's vocabulary that decide whether llama.cpp can run the model."""

from __future__ import annotations

from planner.gguf.model import Model
from planner.text import plain

__all__ = ["alphabet", "ids_beyond", "vocabulary_fault"]

_TOKENS = "tokenizer.ggml.tokens"
_EMBEDDING = "token_embd.weight"
# A vocabulary has some megabytes; anything much larger is not decoded into Python objects
_LARGEST = 1 << 26


def vocabulary_fault(model: Model) -> str | None:
    """Return why llama.cpp cannot load the model's vocabulary, or None if it can.

    A duplicate word aborts its process, and there must be as many words as rows of the embedding.
    """
    if _TOKENS not in model.metadata:
        return None
    count = model.metadata.pair(_TOKENS).count
    embedding = model.by_name.get(_EMBEDDING)
    draft = model.architecture == "eagle3"  # may have the rows of another model's vocabulary
    if embedding is not None and embedding.rows != count and not draft:
        return f"the vocabulary ({_TOKENS}) has {count:,} words, and {_EMBEDDING} has {embedding.rows:,} rows"
    if twice := _twice(model):
        word, first, second = twice
        shown = plain(word.decode("utf-8", "replace"))[:60]
        return f'the vocabulary ({_TOKENS}) has the word "{shown}" twice: as token {first:,} and as token {second:,}'
    return None


def ids_beyond(model: Model) -> dict[str, int]:
    """Return the special tokens that lie outside the vocabulary: key → number. llama.cpp takes another, or none, for
    each."""
    if _TOKENS not in model.metadata:
        return {}
    count = model.metadata.pair(_TOKENS).count
    special = [key for key in model.metadata if key.startswith("tokenizer.ggml.") and key.endswith("_token_id")]
    numbers = {key: model.metadata.integer(key) for key in special}
    # the converters' way to say "none" is -1, as u32
    return {key: number for key, number in numbers.items() if number is not None and count <= number < 2**32 - 1}


def alphabet(model: Model) -> frozenset[bytes] | None:
    """Return the words that every character of a text has to be among, or None if any character will do.

    llama.cpp aborts at other characters if a SentencePiece model lacks a token for some byte, and at any character if
    there is no vocabulary.
    """
    kind = model.metadata.text("tokenizer.ggml.model")
    if kind in ("none", "no_vocab"):
        return frozenset()
    if kind != "llama" or _TOKENS not in model.metadata:
        return None
    words = frozenset(model.metadata.strings(_TOKENS))
    spelt = all(b"<0x%02X>" % byte in words or bytes([byte]) in words for byte in range(256))
    return None if spelt else words


def _twice(model: Model) -> tuple[bytes, int, int] | None:
    """Return a duplicate word and the first two tokens spelt so, as llama.cpp reads them: up to a zero byte."""
    if model.metadata.raw_size(_TOKENS) > _LARGEST:
        return None
    seen: dict[bytes, int] = {}
    for number, word in enumerate(model.metadata.strings(_TOKENS)):
        word = word.partition(b"\0")[0] or b"[EMPTY_%d]" % number
        first = seen.setdefault(word, number)
        if first != number:
            return word, first, number
    return None
