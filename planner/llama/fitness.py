"""Check from a file's metadata whether llama.cpp can run the model as wanted, before it is loaded.

Without these checks, llama.cpp may end the process, or return numbers that mean nothing.
"""

from __future__ import annotations

from pathlib import Path

from planner.errors import ModelError, UsageError, option
from planner.formats.registry import family_named
from planner.gguf import Model, ids_beyond, vocabulary_fault
from planner.llama.library import llama

__all__ = ["check_ends", "check_model", "check_text", "learned_positions", "remarks", "runs_backwards"]

# Architectures as llama.cpp spells them. Those of the first three have no memory of past tokens there
# (llama_model::create_memory), or an encoder alone
_ENCODERS = {
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llama-embed", "modern-bert", "neo-bert",
    "nomic-bert", "nomic-bert-moe",
}  # fmt: skip
_DIFFUSERS = {"dream", "llada", "llada-moe", "rnd1"}
_UNRUNNABLE = {
    "t5": "an encoder-decoder model",
    "t5encoder": "the encoder of an encoder-decoder model",
    "eagle3": "a draft model, which reads what another model computes",
    "dflash": "a draft model, which reads what another model computes",
    "gemma4-assistant": "a draft model, which reads what another model computes",
    "clip": "a projector of images or sound, not a language model",
    "wavtokenizer-dec": "a decoder of sound, not a language model",
}
_POSITIONS = "position_embd.weight"
_SPACE = "\u2581"  # as SentencePiece writes it


def check_model(model: Model, *, context: int, predicts: bool = True) -> None:
    """Refuse a model that cannot be run in windows of `context` tokens or, if `predicts`, that predicts no next token.

    Raises ModelError, and UsageError for a context that the model has no positions for.
    """
    architecture = model.architecture
    if (what := _UNRUNNABLE.get(architecture)) is not None:
        raise ModelError(
            f"{model.path} cannot be run: it is {what} ({architecture}).",
            "planner measure, solve and quantize need no run.",
        )
    formats = (model.format(tensor) for tensor in model.tensors)
    if (other := next((fmt for fmt in formats if not family_named(fmt.family).in_llama_cpp), None)) is not None:
        raise ModelError(
            f"llama.cpp cannot run {model.path}: only {family_named(other.family).engine} has its type {other.name}.",
            "Run it there; or give its recipe, which is followed in the memory of llama.cpp.",
        )
    if predicts and (what := _why_no_prediction(model)) is not None:
        raise ModelError(
            f"{model.path} predicts no next token: {what}.",
            "planner imatrix, measure, solve and quantize work for it; what is told by predictions cannot be found.",
        )
    if (fault := vocabulary_fault(model)) is not None:
        raise ModelError(
            f"{model.path}: {fault}. llama.cpp does not load such a model.",
            "Convert it again from its original, or correct its vocabulary.",
        )
    positions = learned_positions(model)
    if positions is not None and context > positions:
        raise UsageError(
            f"{model.path} has learned {positions:,} positions, and a context of {context:,} tokens is beyond.",
            f"Give at most {positions:,}.",
        )


def check_ends(model: Model, *, adds_bos: bool, bos: int, adds_eos: bool, eos: int) -> None:
    """Refuse a vocabulary without the tokens that it wants to begin and end a text with; a number of -1 is none.

    Raises ModelError.
    """
    beyond = ids_beyond(model)
    for name, added, token in (("bos", adds_bos, bos), ("eos", adds_eos, eos)):
        key = f"tokenizer.ggml.{name}_token_id"
        if added and (token < 0 or key in beyond):
            said = f"{key} is {beyond[key]:,}, beyond it" if key in beyond else f"{key} names none"
            raise ModelError(
                f"{model.path}: texts are to have a token for their {'beginning' if name == 'bos' else 'end'} "
                f"(tokenizer.ggml.add_{name}_token), and the vocabulary has none: {said}.",
                "Convert the model again from its original, or correct its metadata.",
            )


def check_text(path: Path, text: str, letters: frozenset[bytes] | None) -> None:
    """Refuse a text with characters that the model cannot spell by `letters` (see `alphabet`). Raises ModelError."""
    if letters is None:
        return
    if not letters:
        raise ModelError(f"{path} has no vocabulary: it reads no text.", "Ask for what needs no text, such as bench.")
    used = {*text.replace(" ", _SPACE), _SPACE}
    if unknown := [letter for letter in sorted(used) if letter.encode("utf-8", "replace") not in letters]:
        raise ModelError(
            f"{path}: its vocabulary has neither the character {unknown[0]!r} nor tokens for bytes.",
            "Give a text of other characters, or convert the model again from its original.",
        )


def learned_positions(model: Model) -> int | None:
    """Return how many positions the model has vectors for; None where positions are computed."""
    tensor = model.by_name.get(_POSITIONS)
    return None if tensor is None else tensor.rows


def runs_backwards(model: Model) -> bool:
    """Return whether tokens see those after them, so that a window has to be run in one piece."""
    return _why_no_prediction(model) is not None


def remarks(model: Model, *, context: int, gpu_layers: int) -> list[str]:
    """Return notes for the user before a run: on a context that the model was not trained for, and on a GPU that
    llama.cpp cannot use. Raises InferenceError where llama.cpp is missing."""
    found = []
    length = model.parameter("context_length")
    if length is not None and context > length:
        found.append(f"The model was trained on {length:,} tokens at most: a context of {context:,} is beyond.")
    if gpu_layers and not llama().llama_supports_gpu_offload():
        found.append(
            f"{option('gpu_layers', gpu_layers)} has no effect: this llama-cpp-python was built without a GPU. "
            "All runs on the CPU."
        )
    return found


def _why_no_prediction(model: Model) -> str | None:
    architecture = model.architecture
    if architecture in _ENCODERS:
        return f"{architecture} is an encoder"
    if architecture in _DIFFUSERS:
        return f"{architecture} fills in words that are masked"
    key = f"{architecture}.attention.causal"
    if key in model.metadata and not model.metadata.pair(key).is_array and model.metadata[key] is False:
        return f"its tokens see those that follow ({key} is false)"
    return None
