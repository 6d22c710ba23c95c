"""Values at the edges of what files can hold: numbers, floats and words that readers trip over."""

from __future__ import annotations

import math
import struct
from random import Random

__all__ = ["FLOATS", "INTEGERS", "WORDS", "nasty", "near", "packed"]

INTEGERS = (
    0, 1, 2, 3, 4, 7, 8, 15, 31, 32, 33, 63, 64, 100, 127, 128, 255, 256, 257, 1000, 2**15 - 1, 2**15, 2**16 - 1,
    2**16, 10**6, 2**24, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63,
    2**63 + 32, 2**64 - 32, 2**64 - 1,
)  # fmt: skip
FLOATS = (
    math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 1.1e-38, 6e-8, 6.1e-5, 65504.0, 65520.0,
    -65520.0, 1e10, 1e19, -1e19, 1.8e19, 1e30, -1e30, 3.4e38, -3.4e38, 1e-300, 1.7e308,
)  # fmt: skip
WORDS = (
    "", " ", "\0", "\n", "\r", "\r\n", "\t", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff", "\ufffd", "é",
    "\U0001f4a5", "\ud800", "a" * 63, "a" * 64, "a" * 300, "x" * 70_000, "..", "../x", "/", ".gguf", "%s", "{}", "#",
    "0", "-1", "1e999", "-1e-999", "9" * 25, "9" * 5000, "0x10", "nan", "NaN", "inf", "-Infinity", "null", "true",
    "blk.0.ffn_up.weight", "blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight",
    "blk.99999999999999999999.attn_v.weight", "١٢",
    "output.weight", "token_embd.weight", "weight", ".in_sum2", ".counts", ".in_sum", "q4_K", "Q4_K", "q8_0", "iq4_ks",
    "bf16", "f32", "iq1_s", "left alone", "llama", "imatrix", "\\", '"', "'", ",", "=", ":", ";", "_", "(", ")", "[",
    "]", "{", "}", "[[:", "[a-", "[]", "[^]", "(?:", "(?=", "{0}", "{9999}", "{9999,}{9999}", "(a*)*", "(a|a)*$",
    ".*" * 30, "((" * 60, "(" * 3000, "[" * 3000, '{"a":' * 3000, "\\x", "\\xff", "\\u0041", "\\1", "\\b", "^", "$",
    "|", "+", "*", "?",
)  # fmt: skip
_BYTES = (b"\xff\xfe", b"\xc3(", b"\xf0(\x8c(", b"\xed\xa0\x80", b"\x80", b"GGUF", b"\xef\xbb\xbf", b"\0" * 8)


def near(rng: Random, value: int) -> int:
    """A number that is likely to be wrong in place of `value`, and likely to be nearly right."""
    if rng.random() < 0.5:
        return rng.choice(INTEGERS)
    return rng.choice((value + 1, value - 1, value * 2, value // 2, -value, value + 32, value ^ 1 << rng.randrange(64)))


def packed(rng: Random, size: int, present: int = 0) -> bytes:
    """`size` bytes of a number or a float at the edge; `present` is what is there."""
    if size in (4, 8) and rng.random() < 0.4:
        return float_bytes(rng.choice(FLOATS), size)
    return (near(rng, present) % (1 << 8 * size)).to_bytes(size, "little")


def float_bytes(value: float, size: int) -> bytes:
    """A float of 2, 4 or 8 bytes; what is too large for it is infinite."""
    try:
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], value)
    except OverflowError:
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], math.copysign(math.inf, value))


def nasty(rng: Random) -> bytes:
    """A word as bytes, perhaps no text at all."""
    return rng.choice(_BYTES) if rng.random() < 0.15 else rng.choice(WORDS).encode("utf-8", "surrogatepass")
