"""What a model checks before it runs: exits, ids, masks, and the numbers of its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any, ClassVar, Self, cast

import numpy as np

from tinykron.backend import Array, to_device, to_host
from tinykron.errors import CheckpointError, ShapeError, TinykronError


class Config:
    """What the configurations of all families have: frozen dataclasses whose fields have the names of config.json."""

    BLOCKS: ClassVar[str]  # the field that counts the blocks
    UNITS: ClassVar[str]  # the field that counts the units of an MLP
    vocab_size: int
    tie_word_embeddings: bool
    extra: dict[str, Any]  # whatever else config.json says
    head: str | None = None  # what stands on the trunk in place of a language model's head

    def with_blocks(self, blocks: int) -> Self:
        """Return the configuration for another number of blocks."""
        return self.changed(**{self.BLOCKS: blocks})

    def with_units(self, units: int) -> Self:
        """Return the configuration for MLPs of another number of units."""
        return self.changed(**{self.UNITS: units})

    def changed(self, **fields: Any) -> Self:
        """Return the configuration with other values of some fields."""
        return replace(cast(Any, self), **fields)

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds, in the names that transformers reads."""
        raise NotImplementedError


def check_exits(exit: int | None, exits: Sequence[int] | None, blocks: int) -> tuple[int, ...]:
    """Return after how many blocks logits are read, shallow to deep: of all blocks where no exit is asked for.

    Raises TinykronError for exits outside 1..blocks, none at all, one named twice, and for `exit` beside `exits`.
    """
    if exits is None:
        return (blocks if exit is None else check_exit(exit, blocks),)
    if exit is not None:
        raise TinykronError(f"exit {exit} and exits {tuple(exits)}: expected one of the two")
    depths = sorted(check_exit(depth, blocks, "exits") for depth in exits)
    if not depths or len(set(depths)) < len(depths):
        raise TinykronError(f"exits: expected one or more, each named once, found {tuple(exits)}")
    return tuple(depths)


def check_exit(exit: int, blocks: int, name: str = "exit") -> int:
    """Return a number of blocks to leave after. Raises TinykronError unless it is a whole number in 1..blocks."""
    if isinstance(exit, bool) or not isinstance(exit, (int, np.integer)) or not 1 <= exit <= blocks:
        raise TinykronError(f"{name}: expected a number of blocks in 1..{blocks}, found {exit!r}")
    return int(exit)


def trained_exits(value: Any, blocks: int) -> tuple[int, ...]:
    """Return the exits that config.json or a user names. Raises CheckpointError unless they rise within 1..blocks."""
    whole = isinstance(value, (list, tuple)) and all(type(exit) is int and 1 <= exit <= blocks for exit in value)
    if not whole or not value or list(value) != sorted(set(value)):
        raise CheckpointError(f"exits: expected rising numbers of blocks in 1..{blocks}, found {value!r}")
    return tuple(value)


def check_ids(ids: Any) -> np.ndarray:
    """Return token ids as a (B, T) host array. Raises ShapeError for anything else."""
    ids_BT = np.asarray(ids) if isinstance(ids, (list, tuple)) else to_host(ids)
    if ids_BT.ndim != 2 or 0 in ids_BT.shape:
        raise ShapeError(f"token ids: expected a non-empty (batch, time) array, found shape {ids_BT.shape}")
    return ids_BT


def check_mask(mask: Any, shape: tuple[int, int], device: str) -> Array | None:
    """Return a padding mask (B, S) as booleans on `device`, or None where nothing is masked."""
    if mask is None:
        return None
    mask_BS = (np.asarray(mask) if isinstance(mask, (list, tuple)) else to_host(mask)) != 0
    if mask_BS.shape != shape:
        raise ShapeError(f"mask: expected shape {shape} (batch, all positions so far), found {mask_BS.shape}")
    return None if mask_BS.all() else to_device(mask_BS, device)


def positive(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return a whole number > 0 from a configuration. Raises CheckpointError naming the key."""
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        found = "nothing" if value is None else repr(value)
        raise CheckpointError(f"{key}: expected a whole number above 0, found {found}")
    return value


def boolean(config: dict[str, Any], key: str, default: bool) -> bool:
    """Return true or false from a configuration. Raises CheckpointError naming the key."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{key}: expected true or false, found {value!r}")
    return value


def number(
    config: dict[str, Any], key: str, default: float | None, above: float | None = None, below: float = inf
) -> float:
    """Return a finite number from a configuration: at least 0, or more than `above`; less than `below`.

    Raises CheckpointError naming the key.
    """
    value: Any = config.get(key, default)
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not (value >= 0.0 if above is None else value > above) or not value < below:
        least = "from 0 on" if above is None else f"above {above:g}"
        most = "" if below == inf else f" and below {below:g}"
        found = "nothing" if value is None else repr(value)
        raise CheckpointError(f"{key}: expected a number {least}{most}, found {found}")
    return value
