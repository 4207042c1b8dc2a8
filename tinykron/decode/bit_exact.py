"""Logits whose bits do not depend on how many tokens are computed at once.

A matrix product of one row takes other steps than one of five, and ends in other last bits: a pass that checks several
tokens may then prefer the other of two that are almost equally likely. Here no product's shape depends on the number
of tokens: layers take eight rows at once, padded with zeros, and each query attends alone to the keys up to its own.
He et al. 2025 call such kernels batch-invariant.

Letters: B batch, T query time, S key time, H heads, G key heads, M heads of a group, K head width.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, TypeVar

import numpy as np

from tinykron import shapes
from tinykron.backend import Array, to_device, to_host
from tinykron.decode.sampling import whole
from tinykron.errors import TinykronError
from tinykron.fused import _softmax_rows
from tinykron.models.transformer import Decoder
from tinykron.nn import Module, sharing_copy
from tinykron.tensor import Function, Tensor, no_grad

TRIALS = 3  # rows whose result is compared at every place of a block

AnyDecoder = TypeVar("AnyDecoder", bound=Decoder)


def bit_exact(model: AnyDecoder, rows: int = 8) -> AnyDecoder:
    """Return a model of the same parameters whose logits have the same bits however many tokens a pass takes.

    rows  how many positions go through a matrix product at once. On some machines the place of a row among them
          decides its last bits, which is found out here; one row at a time holds everywhere, and makes drafts useless
    The copy is for decoding: it takes several times as long, and has gradients no further than its last attention.
    Raises TinykronError, naming the layer, where the promise cannot be kept.
    """
    whole("rows", rows, 1)
    if not isinstance(model, Decoder):
        raise TinykronError(f"bit_exact: a {type(model).__name__} is no causal language model")
    made = sharing_copy(model)
    width = made.embed(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64)).shape[-1]
    for number, block in enumerate(made.blocks):
        attention = block.attention
        attention.attend = attend
        inputs = dict.fromkeys(("norm_1", "norm_2", "mlp"), width)
        inputs |= dict.fromkeys(("attention.query", "attention.key", "attention.value"), width)
        inputs["attention.output"] = attention.heads * attention.head_width
        for name, size in inputs.items():
            block.set(name, FixedRows(block.get(name), rows, size, f"blocks.{number}.{name}"))
    made.norm = FixedRows(made.norm, rows, width, "norm")  # type: ignore[assignment]
    if made.head is None:
        made.embedding = FixedHead(made.embedding, rows, width, "embedding")  # type: ignore[assignment]
    else:
        made.head = FixedHead(made.head, rows, width, "head")  # type: ignore[assignment]
    return made


class FixedRows(Module):
    """A layer that treats each row of x (..., in) alike, given always as many rows at once."""

    def __init__(self, inner: Any, rows: int, inputs: int, name: str) -> None:
        """`inputs` is the width of a row. Raises TinykronError where a row's place among the others matters."""
        self.inner, self.rows = inner, rows
        self._check(inputs, name)

    @property
    def weight(self) -> Tensor:
        """The layer's own."""
        return self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self._by_blocks(x)

    def block(self, x_ND: Tensor) -> Tensor:
        """What is done to as many rows as there are at once."""
        return self.inner(x_ND)

    def _by_blocks(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        count = len(x_ND)
        padded = shapes.pad(x_ND, [(0, -count % self.rows), (0, 0)])
        blocks = [self.block(padded[start : start + self.rows]) for start in range(0, count, self.rows)]
        out = shapes.concatenate(blocks) if len(blocks) > 1 else blocks[0]
        return out[:count].reshape(*x.shape[:-1], -1)

    def _check(self, inputs: int, name: str) -> None:
        """Raise TinykronError unless a row's bits are the same at every place, whatever stands beside it."""
        generator = np.random.default_rng(0)
        device = self.inner.parameters()[0].device
        with no_grad():
            for row in generator.standard_normal((TRIALS, inputs), dtype=np.float32):
                found = set()
                for place in range(self.rows):
                    x_ND = generator.standard_normal((self.rows, inputs), dtype=np.float32)
                    x_ND[place] = row
                    out_ND = self.block(Tensor(x_ND).to(device))
                    found.add(to_host(out_ND.data)[place].tobytes())
                if len(found) > 1:
                    raise TinykronError(
                        f"bit_exact: {name}: the bits of a row depend on its place among {self.rows} rows, with the "
                        "matrix products of this machine; expected none to; rows=1 holds everywhere"
                    )


class FixedHead(FixedRows):
    """A table: rows are looked up as ever, and scored in blocks of fixed size."""

    def forward(self, ids: Any, what: str = "token id") -> Tensor:
        return self.inner(ids, what)

    def project(self, x: Tensor) -> Tensor:
        """Return x @ table^T."""
        return self._by_blocks(x)

    def block(self, x_ND: Tensor) -> Tensor:
        return self.inner.project(x_ND)


class RowByRow(Function):
    """Causal attention of one query at a time; the shape of its products depends on the query's position alone."""

    def forward(self, xp, q_BHTK, k_BGSK, v_BGSK, mask_BS=None):
        batch, heads, queries, width = q_BHTK.shape
        groups, slots = k_BGSK.shape[1:3]
        mask = None if mask_BS is None else to_host(mask_BS)
        scaled_BTGMK = (q_BHTK * (1.0 / sqrt(width))).swapaxes(1, 2).reshape(batch, queries, groups, -1, width)
        out_BTGMK = xp.zeros((*scaled_BTGMK.shape[:4], v_BGSK.shape[-1]), dtype=self.dtype)
        for row in range(batch):
            for query in range(queries):
                stop = slots - queries + query + 1
                seen = (
                    slice(0, stop) if mask is None else to_device(np.flatnonzero(mask[row, :stop]), self.backend.name)
                )
                k_GSK, v_GSK = (xp.ascontiguousarray(x_BGSK[row][:, seen]) for x_BGSK in (k_BGSK, v_BGSK))
                if k_GSK.shape[1]:  # a query of the padding sees nothing
                    scores_GMS = scaled_BTGMK[row, query] @ k_GSK.swapaxes(1, 2)
                    _softmax_rows(xp, scores_GMS, scores_GMS)
                    out_BTGMK[row, query] = scores_GMS @ v_GSK
        return out_BTGMK.reshape(batch, queries, heads, -1).swapaxes(1, 2)


def attend(
    q_BHTK: Any,
    k_BGSK: Any,
    v_BGSK: Any,
    mask_BS: Array | None = None,
    *,
    causal: bool,
    return_scores: bool = False,
    dropout: float = 0.0,
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Do what `attention.attention` does, for decoding: causal, without dropout, scores or gradient."""
    if not causal or return_scores or dropout:
        raise TinykronError("bit_exact: the model decodes; it keeps no attention scores and drops nothing out")
    inputs = (q_BHTK, k_BGSK, v_BGSK) if mask_BS is None else (q_BHTK, k_BGSK, v_BGSK, mask_BS)
    return RowByRow()(*inputs)
