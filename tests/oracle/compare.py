"""What the comparisons with transformers share: bounds, folders, gradients by Hugging Face names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import assert_close, host
from tinykron.checkpoint.folder import FAMILIES

LOGITS = 1e-4  # largest difference allowed
GRADIENTS = 1e-3  # of a tensor's largest gradient


def write(
    model: Any, folder: Path, prefix: str, shards: bool = False, keep_prefix: bool = True, dtype: str = "float32"
) -> Path:
    """Let transformers write a folder; tensor names keep their prefix, or lose it."""
    import torch
    from safetensors.torch import load_file, save_file

    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="3KB" if shards else "9GB")
    model.to(torch.float32)
    if not keep_prefix:
        index = folder / "model.safetensors.index.json"
        for path in folder.glob("*.safetensors"):
            save_file({name.removeprefix(prefix): t for name, t in load_file(path).items()}, path)
        if index.exists():
            index.write_text(index.read_text().replace(f'"{prefix}', '"'))
    return folder


def assert_alike(found: np.ndarray, expected: np.ndarray, bound: float = LOGITS) -> None:
    assert_close(found, expected, rtol=0, atol=bound)


def assert_attention(scores: Sequence[Any], expected: Sequence[np.ndarray], real_BT: np.ndarray, causal: bool) -> None:
    """Compare attention, after mask and softmax, of the queries that count."""
    time = real_BT.shape[1]
    visible = np.broadcast_to(real_BT[:, None, None, :], (len(real_BT), 1, time, time))
    visible = visible & np.tri(time, dtype=bool) if causal else visible
    for ours, reference in zip(scores, expected, strict=True):
        masked = np.where(visible, host(ours).astype(np.float64), -1e30)
        weights = np.exp(masked - masked.max(-1, keepdims=True))
        weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
        rows = np.broadcast_to(real_BT[:, None], weights.shape[:3])
        assert_close(weights[rows], reference[rows], rtol=0, atol=LOGITS)


def gradients(model: Any) -> dict[str, np.ndarray]:
    """Return the gradients of a model by Hugging Face names, in the layout of the file."""
    own, found = dict(model.named_parameters()), {}
    for name in FAMILIES[model.config.to_dict()["model_type"]].names(model.config):
        parts = [
            np.zeros(own[part].shape, np.float32) if own[part].grad is None else own[part].grad for part in name.ours
        ]
        gradient = np.concatenate(parts, -1)
        found[name.file] = gradient.T if name.transposed else gradient
    return found


def assert_gradients(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = np.abs(found[name] - gradient).max()
        assert error <= GRADIENTS * np.abs(gradient).max() + 1e-6, f"{name}: {error:g} of {np.abs(gradient).max():g}"
