"""A forward pass in parts: positions that wait at a depth until a deeper pass takes them along.

Early exits and self-speculation leave positions half-way. What the blocks above do not know of them yet, their keys
and values, is made later, for all that wait at once: exact, and no block sees a position twice.

Letters: B batch, T query time, S slots of the cache, N positions asked for, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinykron import ops, shapes
from tinykron.backend import Array, to_device, to_host, xp_of
from tinykron.decode.shortlist import Shortlist
from tinykron.models.checks import check_mask
from tinykron.models.transformer import Angles
from tinykron.tensor import Tensor


@dataclass
class Waiting:
    """Neighbouring positions that went through the first `depth` blocks."""

    depth: int
    x_BTD: Tensor
    angles: Angles | None

    def joined(self, later: Waiting) -> Waiting:
        """Return these positions and the ones behind them."""
        x_BTD = shapes.concatenate([self.x_BTD, later.x_BTD], axis=1)
        if self.angles is None or later.angles is None:
            return Waiting(self.depth, x_BTD, None)
        xp = xp_of(x_BTD.data)
        cos, sin = (xp.concatenate(pair, axis=-2) for pair in zip(self.angles, later.angles, strict=True))
        return Waiting(self.depth, x_BTD, (cos, sin))

    def first(self, count: int) -> Waiting:
        """Return the first `count` of these positions."""
        angles = self.angles and (self.angles[0][..., :count, :], self.angles[1][..., :count, :])
        return Waiting(self.depth, self.x_BTD[:, :count], angles)


class PartialPass:
    """A batch on its way through the blocks of a causal model, to be used under no_grad.

    Rows end in the same slot of the cache: a row of fewer tokens has padding before them. Positions go in by `feed`
    and up by `logits`, each block taking them in order. A token's angles are made when it is fed, as plain decoding
    makes them.
    """

    def __init__(self, model: Any, lengths_B: np.ndarray, capacity: int, depth: int | None = None) -> None:
        """Start with prompts of so many tokens each; `depth` is how many blocks the model is taken to have."""
        self.model, self.depth = model, depth or len(model.blocks)
        self.cache = model.cache(capacity)
        self.length = 0  # slots fed
        self.start_B = lengths_B.max() - lengths_B  # the slot of each row's first token
        self.waiting: list[Waiting] = []  # in the order of positions, so from deep to shallow
        self.steps = 0  # positions times blocks that they went through, for each row

    def feed(self, ids_BT: np.ndarray) -> None:
        """Let the next tokens of every row wait before the first block."""
        slots_T = np.arange(self.length, self.length + ids_BT.shape[1])
        positions_BT = np.clip(slots_T - self.start_B[:, None], 0, self.model.context - 1)  # padding, and drafts unused
        self.waiting.append(Waiting(0, self.model.embed(ids_BT, positions_BT), self.model.angles(positions_BT)))
        self.length += len(slots_T)

    def logits(
        self, depth: int, count: int = 1, held_B: np.ndarray | None = None, shortlist: Shortlist | None = None
    ) -> np.ndarray:
        """Return, on the host, the logits (B, N, V) after `depth` blocks of the last `count` positions fed.

        All positions that wait below go up with them. A row that is held stays as it is: the blocks on the way take
        its keys and values from the state it has. It is for a single position, and goes with `fill`. Of tokens that
        are not on a shortlist the logits are -inf.
        """
        self.model.check_cached(depth)
        x_BTD = self._advance(depth, held_B)
        if shortlist is None:
            return to_host(self.model.read(x_BTD[:, -count:], depth).data)
        norm, head = self.model.reader(depth)
        return shortlist.logits(norm(x_BTD[:, -count:]), head)

    def fill(self) -> None:
        """State copy: the blocks above take keys and values from the state that a position left with. Approximate."""
        for group in self.waiting:
            for index in range(group.depth, self.depth):
                self.model.blocks[index].remember(group.x_BTD, self.cache.layers[index], group.angles)
        self.waiting.clear()

    def realign(self, lengths_B: np.ndarray) -> None:
        """Keep of each row, which now has so many tokens, those that were fed, and line the rows up again.

        The last token of a row was never fed. Drafts that were refused are dropped. What waits goes on waiting, unless
        rows have to move: then it goes to the top first.
        """
        missing_B = np.maximum(lengths_B - (self.length - self.start_B), 1)
        start_B = lengths_B.max() - lengths_B
        length = max(0, int(lengths_B.max() - missing_B.max()))
        moves = [
            (row, int(old), int(new), max(0, length - int(new)))
            for row, (old, new) in enumerate(zip(self.start_B, start_B, strict=True))
            if old != new
        ]
        if moves and self.waiting:
            self._advance(self.depth, None)
        self._drop(self.length - length)
        for layer in self.cache.layers[: self.depth]:
            layer.realign(moves, min(length, layer.length))
        self.start_B, self.length = start_B, length

    def _drop(self, count: int) -> None:
        """Forget the last `count` positions, as far as they wait."""
        while count and self.waiting:
            group = self.waiting.pop()
            kept = group.x_BTD.shape[1] - count
            if kept > 0:
                self.waiting.append(group.first(kept))
            count = max(0, -kept)

    def _advance(self, depth: int, held_B: np.ndarray | None) -> Tensor:
        """Bring what waits below `depth` up to it, and return the states (B, T, D) of those that came last."""
        mask_BS = None
        if self.start_B.any():
            mask_BS = np.arange(self.length) >= self.start_B[:, None]
        mask = check_mask(mask_BS, (len(self.start_B), self.length), self.model.norm.weight.device)
        while True:
            group = self.waiting.pop()
            while self.waiting and self.waiting[-1].depth == group.depth:
                group = self.waiting.pop().joined(group)
            goal = min(depth, self.waiting[-1].depth) if self.waiting else depth
            group = self._through(group, goal, mask, held_B)
            if goal == depth:
                break
            self.waiting.append(group)
        if depth < self.depth:
            self.waiting.append(group)
        return group.x_BTD

    def _through(self, group: Waiting, goal: int, mask: Array | None, held_B: np.ndarray | None) -> Waiting:
        x_BTD = group.x_BTD
        held_B11 = None if held_B is None else to_device(held_B, x_BTD.device)[:, None, None]
        for index in range(group.depth, goal):
            y_BTD, _ = self.model.blocks[index](x_BTD, mask, self.cache.layers[index], False, group.angles)
            x_BTD = y_BTD if held_B is None else ops.where(held_B11, x_BTD, y_BTD)
        self.steps += x_BTD.shape[1] * (goal - group.depth)
        return Waiting(goal, x_BTD, group.angles)
