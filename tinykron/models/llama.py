"""LLaMA: configuration, rotary angles, wiring, the names of its tensors in Hugging Face files. Touvron et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import pi
from typing import Any

import numpy as np

from tinykron.backend import to_device
from tinykron.errors import CheckpointError
from tinykron.models.checks import Config, check_heads, number
from tinykron.models.transformer import Angles, Attention, Block, Decoder, GatedMlp, Name
from tinykron.nn import Embedding, Generator, RMSNorm

ROPE_NUMBERS = {  # what each way of scaling rotary positions needs
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class LlamaConfig(Config):
    """The settings that shape a LLaMA, under the names of config.json; `extra` keeps whatever else the file says."""

    BLOCKS, UNITS = "num_hidden_layers", "intermediate_size"
    SIZES = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "num_key_value_heads", "head_dim",
    )  # fmt: skip
    SHARES = ("rms_norm_eps", "attention_dropout")
    FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings")
    DERIVED = ("extra",)
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # None: one for each query head
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None  # {"rope_type": ..., and its ROPE_NUMBERS}
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def groups(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> LlamaConfig:
        """Check a config.json. Raises CheckpointError naming the key, what was found and what was expected."""
        known = cls.checked(config)
        known["extra"].pop("rope_parameters", None)
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise CheckpointError(f'hidden_act: found {config["hidden_act"]!r}, expected "silu"')
        if config.get("pretraining_tp") not in (None, 1):
            raise CheckpointError(f"pretraining_tp: found {config['pretraining_tp']!r}, expected 1")
        known["rope_theta"], known["rope_scaling"] = _rope(config, known["max_position_embeddings"])
        made = cls(**known)
        if made.head_dim is None:
            check_heads(known, "hidden_size", "num_attention_heads")
        if made.num_attention_heads % made.groups:
            raise CheckpointError(
                f"num_attention_heads {made.num_attention_heads} is not divisible by num_key_value_heads {made.groups}"
            )
        if made.head_width % 2:
            raise CheckpointError(f"head_dim: found {made.head_width}, expected an even number: rotary pairs halves")
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds: the rotary settings where transformers 4 reads them, and where 5 does."""
        own = self.own() | {"num_key_value_heads": self.groups, "head_dim": self.head_width, "hidden_act": "silu"}
        own["rope_parameters"] = {"rope_type": "default", **(self.rope_scaling or {}), "rope_theta": self.rope_theta}
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **self.extra, **own}


def _rope(config: dict[str, Any], positions: int) -> tuple[float, dict[str, Any] | None]:
    """Return rope_theta and the scaling (or None) from all places that files have them in, which may not disagree.

    Where they do, transformers 5 silently takes `rope_scaling` before `rope_parameters`, `rope_type` before `type`, a
    rope_theta inside these before the one beside them, and original_max_position_embeddings the other way round.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    places = {key: config.get(key) or {} for key in ("rope_scaling", "rope_parameters")}
    beside = ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor")
    places["config.json"] = {key: config[key] for key in beside if config.get(key) is not None}
    for place, values in places.items():
        if not isinstance(values, dict):
            raise CheckpointError(f"{place}: expected an object, found {values!r}")
        for name, value in values.items():
            key = "rope_type" if name == "type" else name
            if key in merged and merged[key] != value:
                first = f"{merged[key]!r} in {origin[key]}"
                raise CheckpointError(f"{key}: found {first} and {value!r} in {place}, expected the same")
            merged[key], origin[key] = value, place
    if merged.get("partial_rotary_factor") not in (None, 1):
        raise CheckpointError(f"partial_rotary_factor: found {merged['partial_rotary_factor']!r}, expected 1")
    theta = number(merged, "rope_theta", LlamaConfig.rope_theta, above=0.0)
    kind = merged.get("rope_type", "default")
    if kind not in list(ROPE_NUMBERS):
        raise CheckpointError(f"rope_type: found {kind!r}, expected one of {', '.join(ROPE_NUMBERS)}")
    if kind == "llama3":  # as transformers fills it in
        merged.setdefault("original_max_position_embeddings", positions)
    scaling = {key: number(merged, key, None, above=0.0) for key in ROPE_NUMBERS[kind]}
    if scaling.get("factor", 1.0) < 1.0:
        raise CheckpointError(f"factor: found {scaling['factor']!r} for rope_type {kind!r}, expected at least 1")
    if kind == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        raise CheckpointError(f"low_freq_factor {low} should be below high_freq_factor {high}")
    return theta, {"rope_type": kind, **scaling} if scaling else None


def frequencies(config: LlamaConfig, length: int = 0) -> np.ndarray:
    """Return the angle per position of each pair, (K/2,) float32, for a sequence of `length` positions.

    Only "dynamic" depends on the length: beyond max_position_embeddings the base grows with it, as in transformers
    (which keeps the base of the longest pass so far until one is shorter than that: here no pass knows of others).
    Su et al. 2021; linear: Chen et al. 2023; llama3: Grattafiori et al. 2024.
    """
    scaling, width = config.rope_scaling or {"rope_type": "default"}, config.head_width
    kind, base, most = scaling["rope_type"], config.rope_theta, config.max_position_embeddings
    if kind == "dynamic" and length > most and width > 2:
        stretch = scaling["factor"] * length / most - (scaling["factor"] - 1.0)
        base = base * stretch ** (width / (width - 2))
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers = np.float64(base) ** exponents.astype(np.float64)  # float32's power is off by a bit, torch's is not
    turns = np.float32(1.0) / powers.astype(np.float32)
    if kind == "linear":
        turns /= np.float32(scaling["factor"])
    if kind == "llama3":
        low, high, factor = (scaling[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
        periods = scaling["original_max_position_embeddings"] / (2.0 * pi / turns)  # turns within the old context
        share = np.clip((periods - low) / (high - low), 0.0, 1.0)  # 0: slow, is stretched; 1: fast, stays
        turns = ((1.0 - share) * turns / factor + share * turns).astype(np.float32)
    return turns


class Llama(Decoder):
    """LLaMA with its language-model head, of its own or tied to the token embedding."""

    config: LlamaConfig

    def __init__(self, config: LlamaConfig, generator: Generator = None) -> None:
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size, generator)
        self.blocks = [_block(config, generator) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.head = None if tied else Embedding(config.vocab_size, config.hidden_size, generator)

    @property
    def context(self) -> int:
        """The largest number of positions: linear and dynamic scaling stretch what the model was trained on.

        max_position_embeddings of "llama3" is stretched already. transformers itself sets no limit.
        """
        scaling = self.config.rope_scaling or {}
        stretched = scaling.get("rope_type") in ("linear", "dynamic")
        return int(self.config.max_position_embeddings * (scaling["factor"] if stretched else 1))

    def angles(self, positions_BT: np.ndarray) -> Angles:
        """Return the cosines and sines for all layers, from the host.

        "dynamic" beyond its first context: keys in a cache keep the angles of the length at which they came in, so
        that decoding differs from one pass over the whole text; it does so in transformers, and equally.
        """
        turns = frequencies(self.config, int(positions_BT.max()) + 1)
        angles_BTK = positions_BT[..., None].astype(np.float32) * turns
        angles = angles_BTK[0] if len(angles_BTK) == 1 else angles_BTK[:, None]  # alike for all heads
        device = self.norm.weight.device
        return to_device(np.cos(angles), device), to_device(np.sin(angles), device)


def _block(config: LlamaConfig, generator: Generator) -> Block:
    width = config.hidden_size
    return Block(
        RMSNorm(width, config.rms_norm_eps),
        Attention(
            width,
            config.num_attention_heads,
            groups=config.groups,
            head_width=config.head_width,
            bias=config.attention_bias,
            dropout=config.attention_dropout,
            generator=generator,
        ),
        RMSNorm(width, config.rms_norm_eps),
        GatedMlp(width, config.intermediate_size, config.mlp_bias, generator),
    )


PREFIXES = ("model.",)  # left out where a file holds the body alone


def ignored(config: LlamaConfig) -> tuple[str, ...]:
    """Return patterns of what files hold beside parameters: rotary frequencies, saved as buffers by old versions."""
    return (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)


def names(config: LlamaConfig) -> list[Name]:
    """Return the name table: every tensor of a Hugging Face file, and our parameter in it.

    torch's matrices are (out, in), ours (in, out). Query and key rows are in the half-split rotary order already.
    """
    query, group = "num_attention_heads head_dim", "num_key_value_heads head_dim"
    linears = {  # theirs: (ours, where its two sizes come from, whether it has a bias)
        "self_attn.q_proj": ("attention.query", (query, "hidden_size"), config.attention_bias),
        "self_attn.k_proj": ("attention.key", (group, "hidden_size"), config.attention_bias),
        "self_attn.v_proj": ("attention.value", (group, "hidden_size"), config.attention_bias),
        "self_attn.o_proj": ("attention.output", ("hidden_size", query), config.attention_bias),
        "mlp.gate_proj": ("mlp.gate", ("intermediate_size", "hidden_size"), config.mlp_bias),
        "mlp.up_proj": ("mlp.up", ("intermediate_size", "hidden_size"), config.mlp_bias),
        "mlp.down_proj": ("mlp.down", ("hidden_size", "intermediate_size"), config.mlp_bias),
    }
    norms = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
    table_axes = ("vocab_size", "hidden_size")
    alias = "lm_head.weight" if config.tie_word_embeddings else None
    table = [Name("model.embed_tokens.weight", ("embedding.weight",), table_axes, alias=alias)]
    for i in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{i}", f"blocks.{i}"
        for part, (own, axes, bias) in linears.items():
            table.append(Name(f"{theirs}.{part}.weight", (f"{ours}.{own}.weight",), axes, transposed=True))
            if bias:
                table.append(Name(f"{theirs}.{part}.bias", (f"{ours}.{own}.bias",), axes[:1]))
        for part, own in norms.items():
            table.append(Name(f"{theirs}.{part}.weight", (f"{ours}.{own}.weight",), ("hidden_size",)))
    table.append(Name("model.norm.weight", ("norm.weight",), ("hidden_size",)))
    if not config.tie_word_embeddings:
        untied = "config.json says tie_word_embeddings false: if the head is the token embedding, set it true"
        table.append(Name("lm_head.weight", ("head.weight",), table_axes, note=untied))
    return table
