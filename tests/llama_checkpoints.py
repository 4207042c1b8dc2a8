"""LLaMA tensors for tests, made without the package, and a LLaMA in float64 NumPy that reads them.

Everything here is by Hugging Face names: nothing knows how tinykron calls or stores a tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.checkpoints import Config, Tensors

ROPES: dict[str, Config | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}
TINY = {  # query and output matrices are square, as in real files: only values tell them from their transposes
    "model_type": "llama",
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 9,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
UNTIED = TINY | {"tie_word_embeddings": False}
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6], [12, 0, 5, 5, 8, 11, 7, 7]])
LLAMA3 = ROPES["llama3"]


def sizes(config: Config) -> tuple[int, int, int]:
    """Return heads, key heads, and the width of each."""
    heads = config["num_attention_heads"]
    groups, width = config.get("num_key_value_heads") or heads, config.get("head_dim")
    return heads, groups, width or config["hidden_size"] // heads


def llama_tensors(config: Config, seed: int = 0) -> Tensors:
    """Return random tensors as transformers names them, the head among them if it is not tied."""
    generator, tensors = np.random.default_rng(seed), {}
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, groups, own = sizes(config)

    def normal(*shape: int, mean: float = 0.0, std: float = 0.3) -> np.ndarray:
        return (mean + std * generator.standard_normal(shape)).astype(np.float32)

    tensors["model.embed_tokens.weight"] = normal(rows, width, std=0.02)  # so small that epsilon matters
    for i in range(config["num_hidden_layers"]):
        for part, outputs, inputs, std in (
            ("self_attn.q_proj", heads * own, width, 0.6),  # so large that positions matter
            ("self_attn.k_proj", groups * own, width, 0.6),
            ("self_attn.v_proj", groups * own, width, 0.3),
            ("self_attn.o_proj", width, heads * own, 0.3),
            ("mlp.gate_proj", inner, width, 0.6),
            ("mlp.up_proj", inner, width, 0.3),
            ("mlp.down_proj", width, inner, 0.3),
        ):
            tensors[f"model.layers.{i}.{part}.weight"] = normal(outputs, inputs, std=std)
            if config.get("mlp_bias" if part.startswith("mlp") else "attention_bias"):
                tensors[f"model.layers.{i}.{part}.bias"] = normal(outputs)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = normal(width, mean=1.0)
    tensors["model.norm.weight"] = normal(width, mean=1.0)
    if not config.get("tie_word_embeddings", False):
        tensors["lm_head.weight"] = normal(rows, width)
    return tensors


def without_prefix(tensors: Mapping[str, np.ndarray]) -> Tensors:
    return {name.removeprefix("model."): array for name, array in tensors.items()}


def llama_frequencies(config: Config, length: int) -> np.ndarray:
    """Return the angle per position of each rotary pair, as the papers have them."""
    width, base = sizes(config)[2], config.get("rope_theta", 10000.0)
    most, rope = config.get("max_position_embeddings", 2048), config.get("rope_scaling") or {"rope_type": "default"}
    if rope["rope_type"] == "dynamic" and length > most:
        base *= (rope["factor"] * length / most - rope["factor"] + 1) ** (width / (width - 2))
    found = []
    for turn in (base ** (-2 * i / width) for i in range(width // 2)):
        if rope["rope_type"] == "linear":
            turn /= rope["factor"]
        if rope["rope_type"] == "llama3":
            low, high, old = (
                rope[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            )
            wavelength = 2 * np.pi / turn
            if wavelength > old / low:
                turn /= rope["factor"]
            elif wavelength >= old / high:
                smooth = (old / wavelength - low) / (high - low)
                turn = (1 - smooth) * turn / rope["factor"] + smooth * turn
        found.append(turn)
    return np.array(found)


def llama_logits(
    config: Config,
    tensors: Mapping[str, np.ndarray],
    ids_BT: np.ndarray = IDS,
    *,
    interleaved: bool = False,
    tiled: bool = False,
    turned: str = "qk",
    restart: int = 0,
    ungated: bool = False,
) -> np.ndarray:
    """Return LLaMA's logits (B, T, V) in float64. The options are wrong on purpose.

    interleaved  rotary pairs are neighbours, as in Meta's own files
    tiled        query head h reads key head h % G instead of h // (H / G)
    turned       which of query and key get positions
    restart      positions count from 0 again there, as if a cache forgot how long it is
    ungated      SiLU on the up matrix instead of the gate
    """
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    (batch, time), (heads, groups, width) = ids_BT.shape, sizes(config)
    positions_T = np.arange(time)
    if restart:
        positions_T[restart:] -= restart
    angles = positions_T[:, None] * llama_frequencies(config, time)
    cos, sin = np.cos(angles), np.sin(angles)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.get("rms_norm_eps", 1e-6)) * w[f"{name}.weight"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(batch, time, -1, width).swapaxes(1, 2)

    def turn(x: np.ndarray) -> np.ndarray:
        first, second = (x[..., ::2], x[..., 1::2]) if interleaved else np.split(x, 2, axis=-1)
        pairs = first * cos - second * sin, second * cos + first * sin
        return np.stack(pairs, -1).reshape(x.shape) if interleaved else np.concatenate(pairs, -1)

    def shared(x: np.ndarray) -> np.ndarray:
        return np.tile(x, (1, heads // groups, 1, 1)) if tiled else np.repeat(x, heads // groups, axis=1)

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    x = w["model.embed_tokens.weight"][ids_BT]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        inputs = norm(x, f"{layer}.input_layernorm")
        q, k, v = (split(dense(inputs, f"{layer}.self_attn.{part}_proj")) for part in "qkv")
        q, k = turn(q) if "q" in turned else q, turn(k) if "k" in turned else k
        scores = np.where(np.tri(time), q @ shared(k).swapaxes(2, 3) / np.sqrt(width), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ shared(v)).swapaxes(1, 2).reshape(batch, time, -1)
        x = x + dense(mixed, f"{layer}.self_attn.o_proj")
        inputs = norm(x, f"{layer}.post_attention_layernorm")
        gate, up = dense(inputs, f"{layer}.mlp.gate_proj"), dense(inputs, f"{layer}.mlp.up_proj")
        x = x + dense(gate * silu(up) if ungated else silu(gate) * up, f"{layer}.mlp.down_proj")
    return norm(x, "model.norm") @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


@st.composite
def llama_configs(draw: Any) -> Config:
    """Odd head counts, shared key heads, head_dim apart from width / heads, biases, every way of scaling positions."""
    groups, shared = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = groups * shared
    own = draw(st.sampled_from([4, 6, 10]))  # their dynamic scaling divides by head_dim - 2
    return {
        "vocab_size": draw(st.integers(5, 40)),
        "hidden_size": heads * draw(st.sampled_from([4, 6])),
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": draw(st.sampled_from([None, own])),
        "max_position_embeddings": draw(st.integers(6, 12)),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        "rope_theta": draw(st.sampled_from([10000.0, 500000.0, 17.0])),
        "rope_scaling": copy.deepcopy(draw(st.sampled_from(list(ROPES.values())))),  # transformers writes into it
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def odd_llama_configs(draw: Any) -> Config:
    """As transformers takes them; and widths that heads do not divide, where head_dim says their width."""
    config = {"model_type": "llama", **draw(llama_configs())}
    if config["head_dim"] is not None:
        config["hidden_size"] = draw(st.integers(3, 17))
    return config
