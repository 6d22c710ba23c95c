"""Two mixes beside each other: every number checked against the mixes, 80 columns, whatever names and sizes are."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.formats.ggml import formats
from planner.report.difference import GLYPHS, PLAIN_GLYPHS, Cell, Side, difference

TYPES = st.sampled_from(["q4_K", "q4_0", "q6_K", "iq3_s", "f16", "iq2_xxs"])


def side(label, kinds, *, losses=None):
    tensors = {
        name: Cell(fmt, formats()[fmt].row_bytes(256) * 8, (256, 8), None if losses is None else losses[fmt])
        for name, fmt in kinds.items()
    }
    return Side(label, 100 + sum(cell.bytes for cell in tensors.values()), tensors)


def layers(role, kinds):
    return {f"blk.{block}.{role}.weight": fmt for block, fmt in enumerate(kinds)}


def test_a_map_of_layers_and_roles():
    a = layers("attn_q", ["q4_K"] * 5) | layers("ffn_up", ["q4_K"] * 5) | {"output.weight": "q6_K"}
    b = layers("attn_q", ["q4_K", "q6_K", "q5_K", "q4_0", "iq3_s"]) | layers("ffn_up", ["q4_K"] * 5)
    b |= {"blk.4.ffn_up.weight": "iq4_xs", "output.weight": "q6_K"}
    text = difference(side("a", a), side("b", b))
    assert "attn_q  ·▲▲≠▼" in text
    assert "ffn_up  ····▽" in text
    assert "5 of 11 tensors have another type: 2 more bits in B, 2 fewer." in text
    assert "output" not in text.split("changed")[1]
    assert "attn_q  .^^=v" in difference(side("a", a), side("b", b), glyphs=PLAIN_GLYPHS)
    assert "All 11 tensors" in difference(side("a", a), side("b", a))


def test_where_the_loss_comes_from():
    losses = {"q4_K": 0.25, "q6_K": 0.05, "iq3_s": 1.0}
    a = side("a", layers("ffn_up", ["q4_K", "q4_K", "q6_K"]), losses=losses)
    b = side("b", layers("ffn_up", ["q6_K", "q4_K", "iq3_s"]), losses=losses)
    text = difference(a, b, source="prior")
    assert "loss 0.55" in text
    assert "its loss 136.4 % higher (by prior)" in text
    changes = text.split("loss changes most in\n")[1].splitlines()
    assert [line.split()[-1] for line in changes] == ["+0.95", "-0.2"]


def test_short_roles_stand_under_their_heading():
    a, b = (side(name, layers("attn_q", [fmt])) for name, fmt in (("a", "q4_K"), ("b", "q6_K")))
    heading, row = difference(a, b).split("\n\n")[2].splitlines()
    assert heading.index("A") == row.index("q4_K")
    assert heading.index("B") == row.index("q6_K")
    assert len(heading) == len(row)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.builds("blk.{}.{}.weight".format, st.integers(0, 130), st.sampled_from(["attn_q", "ffn_up", "x" * 40]))
        | st.text(max_size=40),
        st.tuples(TYPES, TYPES),
        min_size=1,
        max_size=60,
    ),
    st.text(max_size=90),
    st.booleans(),
)
def test_eighty_columns_and_nothing_that_a_terminal_acts_on(kinds, label, known):
    losses = dict.fromkeys(formats(), 0.5) if known else None
    a = side(label, {name: pair[0] for name, pair in kinds.items()}, losses=losses)
    b = side(label[::-1], {name: pair[1] for name, pair in kinds.items()}, losses=losses)
    text = difference(a, b, source="structure" if known else None)
    assert all(len(line) <= 80 for line in text.split("\n")), text
    assert all(character.isprintable() for character in text.replace("\n", ""))
    other = sum(one != two for one, two in kinds.values())
    if other:
        assert f"{other} of {len(kinds)} tensors" in text
    rows = [re.split(r" {2,}", line, maxsplit=1)[-1] for line in text.split("\n") if set(line) & set(GLYPHS)]
    assert sum(row.count("▲") for row in rows[:-1]) <= other
