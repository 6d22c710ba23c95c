"""Sizes as users write them (`23.85GB` is 10⁹-based, `22GiB` 2³⁰-based), and as files are padded to them."""

from __future__ import annotations

import re
from fractions import Fraction

from planner.errors import UsageError, option

__all__ = ["align", "format_size", "parse_bits", "parse_extent", "parse_size"]

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS[f"{_letter}B"] = _UNITS[_letter] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)")


def align(nbytes: int, alignment: int) -> int:
    """Return `nbytes` rounded up to a multiple of `alignment`.

    >>> align(33, 32), align(64, 32), align(0, 32), align(7, 1)
    (64, 64, 0, 7)
    """
    return -(-nbytes // alignment) * alignment


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `23.85GB`, `512MiB`, `900000000`. Raises UsageError for anything else.

    >>> parse_size("1.5KB"), parse_size("2 GiB"), parse_size("7000")
    (1500, 2147483648, 7000)
    """
    match = _SIZE.fullmatch(text.strip().replace("_", ""))
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or len(match[1]) > 30:
        raise UsageError(
            f"{text!r} is not a size.",
            "Write a number and a unit: 23.85GB (10^9 bytes), 22GiB (2^30), 900MB, or plain bytes.",
        )
    return int(Fraction(match[1]) * unit)


def parse_bits(text: str) -> Fraction:
    """Parse bits per weight, given as a number or a fraction. Raises UsageError.

    >>> parse_bits("4.5"), parse_bits("17/4")
    (Fraction(9, 2), Fraction(17, 4))
    """
    try:
        bits = Fraction(text) if re.fullmatch(r"[\d./]{1,40}", text) else Fraction(0)  # no exponents: 1e-999999999
    except (ValueError, ZeroDivisionError):
        bits = Fraction(0)
    if not 0 < bits <= 64:
        raise UsageError(f"{option('bpw')} {text!r} is not a number of bits.", "Give a number such as 4.5.")
    return bits


def parse_extent(text: str) -> int | Fraction:
    """Parse a size of a model: bytes, or bits per weight as a Fraction. Raises UsageError.

    >>> parse_extent("4.5bpw"), parse_extent("9GB")
    (Fraction(9, 2), 9000000000)
    """
    bits = text.strip().lower()
    return parse_bits(bits.removesuffix("bpw").strip()) if bits.endswith("bpw") else parse_size(text)


def format_size(count: int, *, up: bool = False) -> str:
    """Format bytes for people, in powers of ten; with `up` rounded up, so that the amount shown is enough.

    >>> format_size(23_850_000_000), format_size(999), format_size(6_144), format_size(6_144, up=True)
    ('23.85 GB', '999 bytes', '6.14 kB', '6.15 kB')
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            shown = Fraction(-(-100 * count // size), 100) if up else Fraction(count, size)
            return f"{float(shown):.2f} {unit}"
    return f"{count} bytes"
