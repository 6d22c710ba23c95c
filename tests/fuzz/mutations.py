"""Files made wrong: bytes, lines of text, and what each format is built of."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from random import Random

from tests.fuzz.gguf_files import mutated_gguf
from tests.fuzz.json_files import mutated_json
from tests.fuzz.values import FLOATS, INTEGERS, WORDS, nasty, packed

__all__ = ["MUTATORS", "mutated"]

Mutator = Callable[[Random, bytes], bytes]
_MOST = 300_000  # bytes of an input
_STRUCTURED = 0.65  # share of changes that know the format


def mutated(rng: Random, kind: str, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, or two spliced, with one to four changes."""
    data = rng.choice(seeds)
    if rng.random() < 0.08:
        data = _spliced(rng, data, rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        mutator = MUTATORS[kind] if rng.random() < _STRUCTURED else mutated_bytes
        try:
            data = mutator(rng, data)
        except ValueError:  # an earlier change left nothing to know
            data = mutated_bytes(rng, data)
    return data[:_MOST]


def _spliced(rng: Random, one: bytes, other: bytes) -> bytes:
    return one[: rng.randint(0, len(one))] + other[rng.randint(0, len(other)) :]


def mutated_bytes(rng: Random, data: bytes) -> bytes:
    """Bits flipped, numbers exchanged, pieces cut out, put in, repeated or moved."""
    if not data:
        return nasty(rng)
    at = rng.randrange(min(len(data), rng.choice((16, 64, 512, 1 << 30))))  # heads matter most
    length = rng.choice((1, 1, 2, 4, 8, 32, 200))
    piece = data[at : at + length]
    match rng.randrange(9):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1 | 2 | 3:
            size = rng.choice((1, 2, 4, 8))
            present = int.from_bytes(data[at : at + size], "little")
            return data[:at] + packed(rng, size, present) + data[at + size :]
        case 4:
            return data[:at]
        case 5:
            return data[:at] + data[at + length :]
        case 6:
            return data[:at] + nasty(rng) + data[at:]
        case 7:
            return data[:at] + piece * rng.choice((2, 3, 50)) + data[at + length :]
        case _:
            other = rng.randrange(len(data))
            return data[:other] + piece + data[other:]


_DAMAGE = (
    "CREATE VIEW v AS SELECT 1", "DROP TABLE pass", "ALTER TABLE tensor ADD COLUMN x", "DELETE FROM tensor",
    "UPDATE sqlite_master SET rootpage = 2", "PRAGMA user_version = 0", "PRAGMA user_version = 1",
    "PRAGMA user_version = 3", "PRAGMA application_id = 7",
)  # fmt: skip
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")


def mutated_text(rng: Random, data: bytes) -> bytes:
    """Lines and words exchanged, numbers at the edge, other encodings."""
    text = data.decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    place = rng.randint(0, len(lines[at]))
    match rng.randrange(9):
        case 0:
            lines[at:at] = [rng.choice(lines)] * rng.choice((1, 1, 20))
        case 1:
            del lines[at]
        case 2 | 3:
            lines[at] = lines[at][:place] + rng.choice(WORDS) + lines[at][place:]
        case 4:
            lines[at] = rng.choice(WORDS)
        case 5:
            lines[at] = lines[at][:place] + rng.choice(lines)
        case 6 if numbers := list(_NUMBER.finditer(lines[at])):
            found = rng.choice(numbers)
            value = str(rng.choice((*INTEGERS, *FLOATS)))
            lines[at] = lines[at][: found.start()] + value + lines[at][found.end() :]
        case 7:
            return "\n".join(lines).encode(
                rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32", "latin-1")), "replace"
            )
        case _:
            cut = rng.choice((" ", "=", ",", ":", ".", "(", '"'))
            words = lines[at].split(cut)
            rng.shuffle(words)
            lines[at] = cut.join(words)
    return rng.choice(("\n",) * 8 + ("\r\n", "\r")).join(lines).encode("utf-8", "surrogatepass")


def mutated_records(rng: Random, data: bytes) -> bytes:
    """Four bytes of a binary file: most likely such as look like a length or a count, or a float."""
    small = [at for at in range(len(data) - 3) if 0 < int.from_bytes(data[at : at + 4], "little") < 4096]
    at = rng.choice(small) if small and rng.getrandbits(1) else rng.randrange(max(1, len(data) // 4)) * 4
    return data[:at] + packed(rng, 4, int.from_bytes(data[at : at + 4], "little")) + data[at + 4 :]


def mutated_lines(rng: Random, data: bytes) -> bytes:
    """One line of JSON among several."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = mutated_json(rng, lines[at])
    return b"\n".join(lines)


def mutated_progress(rng: Random, data: bytes) -> bytes:
    """The header of a checkpoint, with a length that agrees."""
    begin = data.index(b"\n") + 9
    end = begin + int.from_bytes(data[begin - 8 : begin], "little")
    header = mutated_json(rng, data[begin:end])
    return data[: begin - 8] + len(header).to_bytes(8, "little") + header + data[end:]


def mutated_sqlite(rng: Random, data: bytes) -> bytes:
    """A field of a row of any table, rows that go or come twice, or the schema: SQLite itself writes it."""
    try:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.deserialize(data)
        connection.execute("PRAGMA writable_schema = ON")
        tables = [str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = rng.choice(tables)
        columns = [str(row[1]) for row in connection.execute(f'PRAGMA table_info("{table}")')]
        rows = [row[0] for row in connection.execute(f'SELECT rowid FROM "{table}"')]
        column, row = rng.choice(columns), rng.choice(rows)
        _change_row(rng, connection, table, column, row, bool(rng.getrandbits(1)))
        return connection.serialize()
    except (sqlite3.Error, IndexError, OverflowError, TypeError, MemoryError) as error:
        raise ValueError(str(error)) from error
    finally:
        connection.close()


def _change_row(rng: Random, connection: sqlite3.Connection, table: str, column: str, row: int, known: bool) -> None:
    pick = rng.random()
    if pick < 0.08:
        connection.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (row,))
    elif pick < 0.12:
        connection.execute(rng.choice(_DAMAGE))
    else:
        present = connection.execute(f'SELECT "{column}" FROM "{table}" WHERE rowid = ?', (row,)).fetchone()[0]
        where, arguments = ("", ()) if pick < 0.2 else (" WHERE rowid = ?", (row,))
        connection.execute(f'UPDATE "{table}" SET "{column}" = ?{where}', (_value(rng, present, known), *arguments))


def _value(rng: Random, present: object, known: bool) -> object:
    """Another value of the same type, or of any."""
    if known and isinstance(present, str) and present[:1] in ("{", "["):
        return mutated_json(rng, present.encode()).decode("utf-8", "replace")
    kind = type(present) if rng.random() < 0.7 else rng.choice((int, float, str, bytes, type(None)))
    if kind is int:
        return min(rng.choice((rng.choice(INTEGERS), -1, -(2**63))), 2**63 - 1)
    if kind is float:
        return rng.choice(FLOATS)
    if kind is str:
        return rng.choice(WORDS).encode("utf-8", "replace").decode()
    return nasty(rng) if kind is bytes else None


MUTATORS: Mapping[str, Mutator] = {
    "gguf": mutated_gguf,
    "json": mutated_json,
    "jsonl": mutated_lines,
    "progress": mutated_progress,
    "records": mutated_records,
    "sqlite": mutated_sqlite,
    "text": mutated_text,
}
