"""Bytes of contexts: of published models by hand, and what holds for any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import ModelError, UsageError
from planner.fit import CACHE_TYPES, KEYS, Context, Needs, as_text, longest, stays_in_ram
from planner.fit.layers import is_known
from planner.formats.ggml import formats
from tests.fit.published import PUBLISHED, Published


def needs_of(model: Published, **more) -> Needs:
    metadata = {key: value if isinstance(value, int) else as_text(value) for key, value in model.metadata.items()}
    width = model.metadata["embedding_length"]
    shapes = {"token_embd.weight": (width, 7), "output.weight": (width, model.vocabulary)}
    return Needs.of(model.architecture, metadata | more, shapes)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("tokens", [4096, 32768])
def test_published_models(name, tokens):
    model = PUBLISHED[name]
    found = needs_of(model).beside(Context(tokens))
    layers, window, each = model.windows
    assert found.per_token == model.per_token
    # a window and a batch of 512, in steps of 256, but no more than the context
    assert found.kv == tokens * model.per_token + layers * each * min(tokens, -(-(window + 512) // 256) * 256)
    assert found.state == 4 * model.state


def test_every_key_that_models_have_is_kept():
    assert {key for model in PUBLISHED.values() for key in model.metadata} <= set(KEYS)
    assert all(is_known(model.architecture) for model in PUBLISHED.values())


def test_types_are_as_large_as_ggmls():
    for name, (block, size) in CACHE_TYPES.items():
        fmt = formats()[name]
        assert (block, size) == (fmt.block, fmt.row_bytes(block)), name


@given(
    st.sampled_from(sorted(PUBLISHED)),
    st.integers(1, 2**20),
    st.integers(1, 256),
    st.integers(1, 4096),
    st.sampled_from(sorted(CACHE_TYPES)),
)
def test_more_of_anything_takes_no_less(name, tokens, sequences, batch, kind):
    model = needs_of(PUBLISHED[name])
    context = Context(tokens, (kind, kind), sequences, batch)
    found = model.beside(context)
    assert found.total == found.kv + found.state + found.compute + found.reserve + found.mmproj
    assert found.kv >= found.per_token * tokens
    assert context.cells * sequences >= tokens
    assert context.cells % 256 == 0
    for more in (
        replace(context, tokens=tokens + 1000),
        replace(context, batch=batch + 100),
        replace(context, kv=("f32", "f32")),
    ):
        larger = model.beside(more)
        assert larger.kv >= found.kv
        assert larger.state >= found.state
    assert model.beside(context, margin=5).total == found.kv + found.state + 5
    assert model.beside(context, mmproj=7).total == found.total + 7


@given(st.sampled_from(sorted(PUBLISHED)), st.integers(256, 2**18), st.integers(0, 2**34), st.integers(1, 4))
def test_the_longest_context_is_the_longest(name, tokens, room, sequences):
    model, context = needs_of(PUBLISHED[name]), Context(tokens, sequences=sequences)
    found = longest(context, lambda other: model.beside(other).total <= room)

    def takes(count):
        return model.beside(replace(context, tokens=count)).total

    if found is None:
        assert takes(256) > room
        return
    assert takes(found) <= room
    assert found <= tokens
    assert found + 256 > tokens or takes(found + 256) > room


def test_blocks_on_a_card_add_up_to_all():
    for model in map(needs_of, PUBLISHED.values()):
        context = Context(8192)
        halves = [model.beside(context, blocks=range(start, 200, 2)) for start in (0, 1)]
        whole = model.beside(context)
        assert sum(half.kv for half in halves) == whole.kv
        assert sum(half.state for half in halves) == whole.state


@pytest.mark.parametrize("kv", ["q8_0", "Q8_0", "q8_0,q4_0", "f16, q8_0"])
def test_types_of_keys_and_values(kv):
    context = Context.parse(4096, kv)
    names = [name.strip().lower() for name in kv.split(",")]
    assert context.kv == (names[0], names[-1])
    found = needs_of(PUBLISHED["llama-3.1-8b"]).beside(context)
    sides = [CACHE_TYPES[name] for name in context.kv]
    assert found.per_token == sum(32 * 8 * 128 // block * size for block, size in sides)


@pytest.mark.parametrize("kv", ["", "q8", "q8_0,q8_0,q8_0", "iq2_xs", ","])
def test_unknown_types_are_refused(kv):
    with pytest.raises(UsageError, match="no such type"):
        Context.parse(4096, kv)


def test_blocks_have_to_divide_heads():
    model = needs_of(PUBLISHED["llama-3.1-8b"], **{"attention.key_length": 80, "attention.value_length": 80})
    assert model.can_keep(Context.parse(512))
    assert not model.can_keep(Context.parse(512, "f16,q4_0"))
    with pytest.raises(UsageError, match=r"heads of 80 .* no multiple of 32"):
        model.beside(Context.parse(512, "q8_0"))


@pytest.mark.parametrize("arguments", [(0,), (-1,), (2**32,), (512, "f16", 0), (512, "f16", 257), (512, "f16", 1, 0)])
def test_contexts_that_llama_cpp_refuses(arguments):
    with pytest.raises(UsageError, match="out of range"):
        Context.parse(*arguments)


def test_layers_that_predict_further_tokens_keep_nothing():
    model = PUBLISHED["qwen3.8-27b"]
    assert needs_of(model, block_count=65, nextn_predict_layers=1).beside(Context(4096)) == needs_of(model).beside(
        Context(4096)
    )


def test_a_list_says_which_layers_are_recurrent():
    model = PUBLISHED["qwen3.8-27b"]
    listed = as_text([int(block % 8 != 7) for block in range(64)])
    assert needs_of(model, **{"attention.recurrent_layers": listed}).beside(Context(4096)).per_token == 32_768


def test_an_unknown_architecture_counts_as_attending_to_everything():
    model = replace(PUBLISHED["gemma-3-27b"], architecture="gemma9")
    assert needs_of(model).beside(Context(4096)).per_token == 62 * 16 * 128 * 2 * 2
    (note,) = needs_of(model).notes(Context(4096))
    assert "gemma9" in note
    hybrid = replace(PUBLISHED["granite-4.0-h-tiny"], architecture="granite9")
    assert needs_of(hybrid).beside(Context(4096)) == needs_of(PUBLISHED["granite-4.0-h-tiny"]).beside(Context(4096))


def test_notes_on_contexts_beyond_training():
    model = needs_of(PUBLISHED["qwen3-32b"], context_length=40960)
    assert model.notes(Context(40960)) == []
    assert model.notes(Context(81920, sequences=2)) == []
    (note,) = model.notes(Context(81922, sequences=2))
    assert "40,960" in note
    assert "40,961 a sequence" in note


def test_an_encoder_has_no_context():
    found = needs_of(replace(PUBLISHED["qwen3-32b"], architecture="bert")).beside(Context(4096))
    assert found.kv == found.state == 0


VALUES = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.booleans(), st.text(max_size=20),
                   st.lists(st.integers(0, 2**63), max_size=9).map(as_text))  # fmt: skip


@given(
    st.sampled_from(
        sorted({model.architecture for model in PUBLISHED.values()} | {"jamba", "nemotron_h", "minimax-m3"})
    ),
    st.dictionaries(st.sampled_from(KEYS), VALUES),
    st.integers(0, 20),
)
def test_metadata_of_any_kind(architecture, metadata, blocks):
    """Nothing but an error of ours comes of metadata that cannot be."""
    try:
        model = Needs.of(architecture, metadata | {"block_count": blocks}, {})
        found = model.beside(Context(4096))
    except (ModelError, UsageError):
        return
    assert min(found.kv, found.state, found.compute) >= 0


def test_too_many_blocks():
    with pytest.raises(ModelError, match="513"):
        Needs.of("llama", {"block_count": 513}, {})


def test_what_stays_in_ram():
    untied = ["token_embd.weight", "output.weight", "blk.0.attn_q.weight", "per_layer_token_embd.weight"]
    assert [name for name in untied if stays_in_ram(name, untied)] == [untied[0], untied[3]]
    assert not stays_in_ram("token_embd.weight", ["token_embd.weight", "blk.0.attn_q.weight"])
    assert not stays_in_ram("v.blk.0.token_embd.weight", untied)
