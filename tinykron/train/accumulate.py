"""A sum of losses whose graphs are never alive together: each is sent backward before the next one is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tinykron.backend import Array
from tinykron.tensor import Function, Tensor


class Accumulated(Function):
    """A scalar whose gradients are known: forward returns its value, backward scales them."""

    def __init__(self, value: float, gradients: Sequence[Array]) -> None:
        self.value, self.gradients = value, tuple(gradients)

    def forward(self, xp, *sources):
        self.saved, self.gradients = self.gradients, ()
        return xp.asarray(self.value, dtype=self.dtype)

    def backward(self, xp, grad):
        return tuple(gradient * grad for gradient in self.saved)


def accumulated(losses: Iterable[Tensor], leaves: Sequence[Tensor], sources: Sequence[Tensor] = ()) -> Tensor:
    """Return the sum of scalars as one node of the graph; memory peaks at what the largest of them takes.

    losses   an iterator that makes each loss when it is asked for, from `leaves`
    leaves   where the losses' gradients are collected; what they held before they get back
    sources  what each leaf stands for in the graph that goes on behind; by default itself
    """
    before = [leaf.grad for leaf in leaves]
    value = 0.0
    for leaf in leaves:
        leaf.grad = None
    try:
        for loss in losses:
            value += loss.item()
            if loss.requires_grad:
                loss.backward()
        pairs: list[tuple[Any, Array]] = [
            (source, leaf.grad) for leaf, source in zip(leaves, sources or leaves, strict=True) if leaf.grad is not None
        ]
    finally:
        for leaf, grad in zip(leaves, before, strict=True):
            leaf.grad = grad
    if not pairs:
        return Tensor(value)
    return Accumulated(value, [gradient for _, gradient in pairs])(*(source for source, _ in pairs))
