"""What a token costs: multiplications and additions, layer by layer."""

from __future__ import annotations

from typing import Any

from tinykron.kron.linear import KronEmbedding, KronModule
from tinykron.kron.product import multiplications
from tinykron.nn import Embedding, Linear


def flops_per_token(model: Any, position: int) -> int:
    """Return the multiplications and additions of the matrix products of one token, attention and head included.

    A token of a causal model sees `position` others; one of BERT's sees them and as many behind it. BERT's pooler and
    its classifiers of whole texts are used once a text and left out; a classifier of tokens counts.
    """
    causal = model.causal
    once = [] if causal else _used_once_a_text(model)
    count = 0
    for name, module in model.modules():
        if isinstance(module, Embedding | KronEmbedding) or any(module is other for other in once):
            continue  # a row is looked up, nothing is multiplied
        if name.startswith("exit_parts."):
            continue  # the full model does not go through what an exit has of its own
        count += _product_flops(module)
    attention = model.blocks[0].attention
    seen = position + 1 if causal else 2 * position
    count += len(model.blocks) * 2 * 2 * attention.heads * attention.head_width * seen
    table = output_table(model)
    return count + (0 if table is None else _product_flops(table))


def _used_once_a_text(model: Any) -> list[Any]:
    whole_text = model.config.head == "sequence"
    return [model.pooler, *([model.head.linear] if whole_text else [])]


def _product_flops(module: Any) -> int:
    """Return the multiplications and additions of one vector with a layer's matrix."""
    if isinstance(module, Linear | Embedding):
        return 2 * module.weight.size
    return 2 * multiplications(module.factors.a, module.factors.b) if isinstance(module, KronModule) else 0


def output_table(model: Any) -> Any:
    """Return the table whose rows score the vocabulary: the head's own, or the token embedding; None without one."""
    if model.causal:
        return model.head or model.embedding
    return (model.head.decoder or model.embedding) if model.fills else None
