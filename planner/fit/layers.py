"""What each layer of a model keeps of its context in llama.cpp, by the rules of its architecture.

Sources: `load_arch_hparams` of every file in src/models, `llama_model_base::load_hparams` and `create_memory` in
src/llama-model.cpp, and src/llama-hparams.cpp of llama.cpp (as of ggml 0.25.3). `tests/fit` compares with what it
allocates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from planner.fit.parameters import Parameters

__all__ = ["INDEXED", "Layer", "is_known", "layers_of"]


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer keeps: `keys` and `values` are numbers a token, of all heads together; `state` numbers (float32) a
    sequence, whatever its length. With a `window`, tokens before the last so many are forgotten. `head` is the length
    of a head's key and value, which blocks of a quantized type have to divide."""

    block: int
    keys: int = 0
    values: int = 0
    head: tuple[int, int] = (0, 0)
    window: int | None = None
    state: int = 0


@dataclass(frozen=True, slots=True)
class _Windows:
    """Which layers attend to a window: all but every `period`-th (the first of each `period` if `dense_first`), unless
    the metadata has another period or a list. `size` is the window where they have none, `fixed` one that they cannot
    change; `only` the number of blocks that a model must have."""

    period: int = 0
    dense_first: bool = False
    size: int = 0
    fixed: int = 0
    only: int = 0


# Other architectures have no windows in llama.cpp, whatever their metadata say: phi3 and qwen2 among them
_WINDOWS: Mapping[str, _Windows] = MappingProxyType({
    "afmoe": _Windows(4),
    "cohere2": _Windows(4),
    "cohere2moe": _Windows(4, dense_first=True),
    "dots3note": _Windows(),
    "exaone-moe": _Windows(4, size=128),
    "exaone4": _Windows(4, size=4096, only=64),
    "gemma2": _Windows(2, size=4096),
    "gemma3": _Windows(6),
    "gemma3n": _Windows(5),
    "gemma4": _Windows(),
    "gpt-oss": _Windows(2),
    "granite_swa": _Windows(),
    "laguna": _Windows(4, dense_first=True),
    "lfm2": _Windows(),
    "llama4": _Windows(4, size=8192, fixed=8192),
    "maple": _Windows(),
    "mellum": _Windows(4),
    "mimo2": _Windows(),
    "muse-glimmer": _Windows(4),
    "olmo2": _Windows(4),
    "plamo3": _Windows(8),
    "smallthinker": _Windows(4, dense_first=True, fixed=4096),
    "spark2_5": _Windows(),
    "step35": _Windows(),
})  # fmt: skip

# Recurrent and hybrid architectures (llm_arch_is_recurrent, llm_arch_is_hybrid in llama-arch.cpp)
_RECURRENT = frozenset(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"))
_BOTH = frozenset(("falcon-h1",))  # each layer attends and has a state
_WITHOUT_HEADS = frozenset((
    "bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe", "nemotron_h",
    "nemotron_h_moe", "plamo2",
))  # layers without heads of keys are recurrent  # fmt: skip
_NO_FEED_FORWARD = frozenset(("nemotron_h", "nemotron_h_moe"))  # a layer attends, is recurrent, or feeds forward
_UNGROUPED = frozenset(("jamba", "mamba"))  # whose number of groups is not read
# Every so many layers one attends, unless the metadata have another number or a list
_INTERVALS = MappingProxyType({"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4})
_NEXTN_ATTENDS = frozenset(("bailingmoe3", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe",
                            "nemotron_h", "nemotron_h_moe", "plamo2"))  # fmt: skip

# Which choose what to attend to by an indexer, whose keys are cached too
INDEXED = frozenset(("deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "minimax-m3", "qwen4exp"))
_NO_CONTEXT = frozenset((
    "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada", "llada-moe",
    "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1", "t5encoder", "wavtokenizer-dec",
))  # fmt: skip
_PLAIN = frozenset((
    "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom", "chameleon", "chatglm",
    "codeshell", "cogvlm", "command-r", "dbrx", "deci", "deepseek", "deepseek2", "deepseek2-ocr", "dots1", "ernie4_5",
    "ernie4_5-moe", "exaone", "falcon", "gemma", "glm4", "glm4moe", "gpt2", "gptj", "gptneox", "granite",
    "granitemoe", "graniteswitch", "grok", "grovemoe", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "hy_v3",
    "internlm2", "jais", "jais2", "llama", "llama-embed", "maincoder", "minicpm", "minicpm3", "minimax-m2", "mistral3",
    "mistral4", "mpt", "nanbeige", "nemotron", "olmo", "olmoe", "openelm", "orion", "paddleocr", "pangu-embedded",
    "phi2", "phi3", "phimoe", "plamo", "plm", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl",
    "qwen3vlmoe", "refact", "seed_oss", "smollm3", "stablelm", "starcoder", "starcoder2", "xverse",
))  # fmt: skip
_KNOWN = _PLAIN | _WINDOWS.keys() | _RECURRENT | _BOTH | _WITHOUT_HEADS | _INTERVALS.keys() | INDEXED | _NO_CONTEXT

_GEMMA3N_OWN = 20  # layers of gemma3n with keys and values of their own; later ones read theirs


def is_known(architecture: str) -> bool:
    """Return whether we know what llama.cpp keeps for this architecture; others are counted as if each layer attended
    to the whole context."""
    return architecture in _KNOWN


def layers_of(architecture: str, parameters: Parameters) -> tuple[Layer, ...]:
    """Return what each layer keeps, for those that keep anything; `block` is where its tensors are.

    Raises ModelError for more blocks than llama.cpp takes.
    """
    if architecture in _NO_CONTEXT:
        return ()
    model = _Model(architecture, parameters)
    found = [model.layer(block) for block in range(parameters.blocks)]
    if architecture == "nanbeige":  # runs through all blocks several times
        found *= min(max(parameters.number("num_loops", 1), 1), 64)
    if architecture == "graniteswitch":  # a layer of one head that chooses adapters
        key, value = model.heads[0]
        found.append(Layer(len(found) - 1, key, value, (key, value)))
    return tuple(layer for layer in found if layer.keys or layer.values or layer.state)


class _Model:
    """The rules of one architecture, applied to one model's numbers."""

    def __init__(self, architecture: str, parameters: Parameters) -> None:
        self.architecture, self.parameters = architecture, parameters
        blocks = self.blocks = parameters.blocks
        self.trunk = blocks - min(parameters.number("nextn_predict_layers"), blocks) or blocks
        queries = parameters.each("attention.head_count", [0] * blocks)
        self.queries = queries[0] if queries else 0
        self.kv_heads = parameters.each("attention.head_count_kv", queries)
        length = parameters.number("embedding_length") // self.queries if self.queries else 0
        key = parameters.number("attention.key_length", length)
        value = parameters.number("attention.value_length", length)
        # of layers that attend to everything, of those with a window
        self.heads = (
            (key, value),
            (
                parameters.number("attention.key_length_swa", key),
                parameters.number("attention.value_length_swa", value),
            ),
        )
        self.latent = "attention.key_length_mla" in parameters and "attention.value_length_mla" in parameters
        self.window, self.windowed = self._windows()
        self.recurrent = self._recurrent()
        self.state = self._state()

    def layer(self, block: int) -> Layer:
        keys = values = 0
        window = self.window if self.windowed[block] else None
        key, value = self.heads[window is not None]
        if self._attends(block):
            keys = key * self.kv_heads[block]
            values = 0 if self.latent else value * self.kv_heads[block]
            if window is None and self._has_indexer(block):
                pooled = self.architecture == "glm5-next" and self.parameters.number("attention.indexer.kpool") > 0
                keys += self.parameters.number("attention.indexer.key_length") * (3 if pooled else 1)
                # which hy_v4's and others' latent attention spares, and minimax-m3's does not
                values += 0 if self.latent or self.architecture == "qwen4exp" else value
        state = self.state + self._history(block) if self.recurrent[block] else 0
        return Layer(block, keys, values, (key, 0 if self.latent else value), window, state)

    def _history(self, block: int) -> int:
        """Return the numbers of qwen4exp's convolution over n-grams (llama_hparams::ple_conv_state)."""
        number = self.parameters.number
        if block not in self.parameters.numbers("ple.layers"):
            return 0
        taps = max(number("ple.conv_kernel") - 1, 0) * number("ple.ngram_size")
        return taps * number("hyper_connection.count") * number("embedding_length")

    def _attends(self, block: int) -> bool:
        if self.architecture in _RECURRENT or (block >= self.trunk and self.architecture not in _NEXTN_ATTENDS):
            return False
        if self.recurrent[block] and self.architecture not in _BOTH:
            return False
        if self.architecture in _NO_FEED_FORWARD and self._feeds_forward(block):
            return False
        if self.architecture == "gemma3n":
            return block < _GEMMA3N_OWN
        if self.architecture == "gemma4":
            return block < self.blocks - self.parameters.number("attention.shared_kv_layers")
        return True

    def _feeds_forward(self, block: int) -> bool:
        return self.parameters.each("feed_forward_length", [0] * self.blocks)[block] > 0

    def _has_indexer(self, block: int) -> bool:
        if self.architecture not in INDEXED:
            return False
        if self.architecture == "hy_v4" and not self.parameters.number("attention.indexer.top_k"):
            return False
        if self.architecture == "minimax-m3":
            return block >= self.parameters.number("leading_dense_block_count")
        full = self.parameters.flags("attention.indexer.types")
        return full is None or self.architecture == "deepseek32" or full[block]

    def _windows(self) -> tuple[int, list[bool]]:
        """Return the window, and which layers have one."""
        none = 0, [False] * self.blocks
        rule = _WINDOWS.get(self.architecture)
        if rule is None or (rule.only and rule.only != self.trunk):
            return none
        window = self.parameters.number("attention.sliding_window", rule.size)
        if not window:
            return none
        key = "attention.sliding_window_pattern"
        listed = self.parameters.flags(key)
        if self.architecture == "lfm2":
            listed = [True] * self.blocks  # those that attend at all
        period = self.parameters.number(key, rule.period)
        ours = [self._has_window(block, period, rule) for block in range(self.blocks)]
        return rule.fixed or window, listed or ours

    def _has_window(self, block: int, period: int, rule: _Windows) -> bool:
        """llama_hparams::set_swa_pattern. Where a list is needed and missing, llama.cpp loads no such model."""
        if block >= self.trunk or not rule.period:
            return False
        if not period:
            return True
        return block % period != 0 if rule.dense_first else block % period < period - 1

    def _recurrent(self) -> list[bool]:
        """Return which layers have a state."""
        if self.architecture in _RECURRENT | _BOTH:
            return [True] * self.blocks
        trunk = [block < self.trunk for block in range(self.blocks)]
        if self.architecture in _INTERVALS:
            listed = self.parameters.flags("attention.recurrent_layers")
            every = max(self.parameters.number("full_attention_interval", _INTERVALS[self.architecture]), 1)
            own = listed or [(block + 1) % every != 0 for block in range(self.blocks)]
            return [a and b for a, b in zip(own, trunk, strict=True)]
        if self.architecture in _WITHOUT_HEADS or not is_known(self.architecture):
            skipped = self.architecture in _NO_FEED_FORWARD
            return [
                trunk[block] and not self.kv_heads[block] and not (skipped and self._feeds_forward(block))
                for block in range(self.blocks)
            ]
        return [False] * self.blocks

    def _state(self) -> int:
        """Return the numbers of a recurrent layer's state (llama_hparams::n_embd_r and n_embd_s)."""
        number, width = self.parameters.number, self.parameters.number("embedding_length")
        kernel = number("ssm.conv_kernel")
        if head := number("wkv.head_size"):  # token shift, and a matrix a head
            return number("token_shift_count", 2) * width + width * head
        if (length := number("shortconv.l_cache")) > 0:
            return width * (length - 1)
        if head := number("kda.head_dim"):  # convolutions of query, key and value, and a matrix a head
            return 3 * (kernel - 1 if kernel else 3) * self.queries * head + head * head * self.queries
        groups = 0 if self.architecture in _UNGROUPED else number("ssm.group_count")
        convolution = max(kernel - 1, 0) * (number("ssm.inner_size") + 2 * groups * number("ssm.state_size"))
        if self.architecture == "minimax-01":
            head = self.heads[0][0]
            return convolution + head * head * self.queries
        return convolution + number("ssm.state_size") * number("ssm.inner_size")
