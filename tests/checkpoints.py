"""GPT-2 folders for tests, written without the package, and a GPT-2 in float64 NumPy that reads the same tensors.

Everything here is by Hugging Face names: nothing knows how tinykron calls or stores a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.special import erf

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]

TINY = {  # no two sizes alike, but c_proj is square whatever one does
    "model_type": "gpt2",
    "vocab_size": 13,
    "n_positions": 9,
    "n_embd": 6,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 10,
}
IDS = np.array([[3, 1, 4, 1, 5, 9, 2], [12, 0, 5, 5, 8, 11, 7]])


def gpt2_tensors(config: Config, seed: int = 0) -> Tensors:
    """Return random tensors under the hub's names (without prefix), the head among them if it is not tied."""
    generator = np.random.default_rng(seed)
    width, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]

    def normal(*shape: int, mean: float = 0.0, std: float = 0.3) -> np.ndarray:
        return (mean + std * generator.standard_normal(shape)).astype(np.float32)

    tensors = {
        "wte.weight": normal(config["vocab_size"], width, std=0.02),  # so small that epsilon matters
        "wpe.weight": normal(config["n_positions"], width, std=0.02),
        "ln_f.weight": normal(width, mean=1.0),
        "ln_f.bias": normal(width),
    }
    for i in range(config["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            tensors |= {f"h.{i}.{norm}.weight": normal(width, mean=1.0), f"h.{i}.{norm}.bias": normal(width)}
        for name, inputs, outputs, std in (
            ("attn.c_attn", width, 3 * width, 0.3),
            ("attn.c_proj", width, width, 0.3),
            ("mlp.c_fc", width, inner, 1.0),  # so large that the two GELUs differ
            ("mlp.c_proj", inner, width, 1.0),
        ):
            tensors[f"h.{i}.{name}.weight"] = normal(inputs, outputs, std=std)
            tensors[f"h.{i}.{name}.bias"] = normal(outputs)
    if not config.get("tie_word_embeddings", True):
        tensors["lm_head.weight"] = normal(config["vocab_size"], width)
    return tensors


def write_folder(folder: Path, config: Config, tensors: Mapping[str, np.ndarray], shards: int = 1) -> Path:
    """Write a checkpoint as one file, or as shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for place in set(weight_map.values()):
        save_file({name: array for name, array in tensors.items() if weight_map[name] == place}, folder / place)
    index = {"metadata": {"total_size": sum(array.nbytes for array in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def gpt2_logits(config: Config, tensors: Mapping[str, np.ndarray], ids_BT: np.ndarray = IDS) -> np.ndarray:
    """Return GPT-2's logits (B, T, V) in float64, from tensors under the hub's names."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    (batch, time), heads, eps = ids_BT.shape, config["n_head"], config.get("layer_norm_epsilon", 1e-5)
    gelu = {"gelu": gelu_erf, "gelu_new": gelu_tanh}[config.get("activation_function", "gelu_new")]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][ids_BT] + w["wpe.weight"][:time]
    for i in range(config["n_layer"]):
        qkv = dense(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.reshape(batch, time, heads, -1).swapaxes(1, 2) for part in np.split(qkv, 3, axis=-1))
        scores = np.where(np.tri(time), q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(batch, time, -1)
        x = x + dense(mixed, f"h.{i}.attn.c_proj")
        x = x + dense(gelu(dense(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


@st.composite
def gpt2_configs(draw: Any) -> Config:
    """Tiny configurations: odd widths and head counts, either GELU, tied or not."""
    heads = draw(st.integers(1, 3))
    return {
        "model_type": "gpt2",
        "vocab_size": draw(st.integers(5, 40)),
        "n_positions": draw(st.integers(6, 12)),
        "n_embd": heads * draw(st.integers(3, 7)),
        "n_layer": draw(st.integers(1, 3)),
        "n_head": heads,
        "n_inner": draw(st.none() | st.integers(1, 20)),
        "activation_function": draw(st.sampled_from(["gelu", "gelu_new"])),
        "layer_norm_epsilon": draw(st.sampled_from([1e-5, 1e-3])),
        "tie_word_embeddings": draw(st.booleans()),
    }
