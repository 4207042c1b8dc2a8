"""Small causal models with random weights, and decoding written plainly: a full pass for every token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import host
from tinykron.data.shipped import shipped_folder
from tinykron.models.gpt2 import GPT2, GPT2Config
from tinykron.models.llama import Llama, LlamaConfig

CONTEXT = 32
DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def tiny_gpt2(seed: int, vocabulary: int = 40, spread: float = 12.0, **config: Any) -> GPT2:
    """A random GPT-2 whose matrices are large enough for its tokens to differ in likelihood."""
    settings = {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, **config}
    model = GPT2(GPT2Config(vocab_size=vocabulary, **settings), np.random.default_rng(seed))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= spread
    return model


def tiny_llama(seed: int, vocabulary: int = 40, spread: float = 12.0, **config: Any) -> Llama:
    """A random LLaMA of the same kind: two query heads share a key head."""
    settings = {"max_position_embeddings": CONTEXT, "hidden_size": 16, "intermediate_size": 24, **config}
    settings = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, **settings}
    made = LlamaConfig(vocab_size=vocabulary, **settings)
    model = Llama(made, np.random.default_rng(seed))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= spread
    return model


def deep(family: str, seed: int, layers: int = 4, **config: Any) -> Any:
    """A model of either family whose exits often agree with the last one: later blocks add little."""
    if family == "gpt2":
        model: Any = tiny_gpt2(seed, n_layer=layers, **config).eval()
    else:
        model = tiny_llama(seed, num_hidden_layers=layers, **config).eval()
    for block in model.blocks[1:]:
        block.attention.output.weight.data *= 0.3
        block.mlp.down.weight.data *= 0.3
    return model


def trained(name: str) -> Any:
    """A shipped model, or a story model from beside the repository; skips where that is not."""
    folder = shipped_folder("weights") / name if name.endswith("tiny") else DATA / name
    if not folder.exists():
        pytest.skip(f"{folder} is not here: the story models are no part of this repository")
    return tk.load(folder)


def full_logits(model: Any, ids: list[int], exit: int | None = None) -> np.ndarray:
    """The logits of the token after `ids`, from one pass without a cache."""
    with tk.no_grad():
        return host(model([ids], exit=exit).logits)[0, -1]


def greedy(model: Any, ids: list[int], count: int, exit: int | None = None) -> list[int]:
    """Greedy decoding: a full pass for every token."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(full_logits(model, ids, exit).argmax()))
    return ids


def greedy_by_confidence(
    model: Any, ids: list[int], count: int, thresholds: Mapping[int, float], copied: bool = False
) -> tuple[list[int], list[int]]:
    """Leave at the first exit that is sure enough; return all tokens, and the depth of each new one.

    copied  a token that left keeps its state: what the blocks above know of it, they take from that
    """
    ids, last = list(ids), len(model.blocks)
    left: list[int] = [last] * (len(ids) - 1)  # the depth at which each position left
    made: list[int] = []
    for _ in range(count):
        with tk.no_grad():
            x_BTD = model.embed(np.array([ids]), np.arange(len(ids))[None])
            angles = model.angles(np.arange(len(ids))[None])
            for depth, block in enumerate(model.blocks, 1):
                y_BTD = block(x_BTD, None, None, False, angles)[0]
                stays = np.array([*left, last])[None, :, None] < depth
                x_BTD = tk.Tensor(np.where(stays, host(x_BTD), host(y_BTD))) if copied else y_BTD
                logits = host(model.read(x_BTD))[0, -1].astype(np.float64)
                weights = np.exp(logits - logits.max())
                if depth == last or weights.max() / weights.sum() >= thresholds.get(depth, 2.0):
                    break
        left.append(depth)
        made.append(depth)
        ids.append(int(logits.argmax()))
    return ids, made
