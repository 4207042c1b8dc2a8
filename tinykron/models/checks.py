"""What the configurations of all families share, and what a model checks before it runs: exits, ids, masks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from math import inf
from typing import Any, ClassVar, Self, cast

import numpy as np

from tinykron.backend import Array, to_device, to_host
from tinykron.errors import CheckpointError, ShapeError, TinykronError


class Config:
    """What the configurations of all families have: frozen dataclasses whose fields have the names of config.json."""

    BLOCKS: ClassVar[str]  # the field that counts the blocks
    UNITS: ClassVar[str]  # the field that counts the units of an MLP
    SIZES: ClassVar[tuple[str, ...]]  # fields that are whole numbers above 0, or None where that is the default
    SHARES: ClassVar[tuple[str, ...]]  # fields from 0 on and below 1
    FLAGS: ClassVar[tuple[str, ...]]  # fields that are true or false
    DERIVED: ClassVar[tuple[str, ...]] = ("head", "labels", "extra")  # what has another name in config.json
    REFUSED: ClassVar[Mapping[str, Any]] = {}  # settings that change the mathematics
    vocab_size: int
    tie_word_embeddings: bool
    extra: dict[str, Any]  # whatever else config.json says
    head: str | None = None  # what stands on the trunk in place of a language model's head

    @classmethod
    def checked(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that config.json gives, checked, and as "extra" whatever else it says.

        Raises CheckpointError naming the key, what was found and what was expected.
        """
        own = cls.own_fields()
        known = {name: config[name] for name in own if name in config}
        for names, check in ((cls.SIZES, positive), (cls.SHARES, share), (cls.FLAGS, boolean)):
            for key in names:
                default = getattr(cls, key)
                if default is not None or known.get(key) is not None:
                    known[key] = check(config, key, default)
        for key, refused in cls.REFUSED.items():
            if config.get(key) is refused:
                raise CheckpointError(f"{key}: {refused} changes the mathematics and is not supported")
        return known | {"extra": {key: value for key, value in config.items() if key not in own}}

    @classmethod
    def own_fields(cls) -> list[str]:
        """Return the fields that stand in config.json under their own names."""
        return [one.name for one in fields(cast(Any, cls)) if one.name not in cls.DERIVED]

    def own(self) -> dict[str, Any]:
        """Return the values of the fields that stand in config.json under their own names."""
        return {name: getattr(self, name) for name in self.own_fields()}

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
        raise TinykronError(f"{type(self).__name__} defines nothing for config.json")


def check_heads(known: Mapping[str, Any], width: str, heads: str) -> None:
    """Raise CheckpointError unless the heads share the width evenly."""
    if known[width] % known[heads]:
        raise CheckpointError(f"{width} {known[width]} is not divisible by {heads} {known[heads]}")


def check_activation(config: dict[str, Any], key: str, default: str, known: Collection[str]) -> None:
    """Raise CheckpointError unless config.json names an activation that there is."""
    found = config.get(key, default)
    if found not in list(known):
        raise CheckpointError(f"{key}: found {found!r}, expected one of {', '.join(known)}")


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


def share(config: dict[str, Any], key: str, default: float | None) -> float:
    """Return a number from 0 on and below 1 from a configuration. Raises CheckpointError naming the key."""
    return number(config, key, default, below=1.0)


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


# The classes of a head, as config.json tells them ---------------------------------------------------------------------


def class_count(config: dict[str, Any]) -> int:
    """Return how many there are: `id2label`, else `num_labels`, else 2. Raises CheckpointError naming the key."""
    labels = config.get("id2label")
    if labels is None:
        return positive(config, "num_labels", 2)
    if not isinstance(labels, dict) or not labels:
        raise CheckpointError(f"id2label: expected an object of label numbers and names, found {labels!r}")
    if config.get("num_labels", len(labels)) != len(labels):
        raise CheckpointError(f"num_labels: found {config['num_labels']!r}, id2label has {len(labels)}")
    return len(labels)


def class_names(extra: dict[str, Any], labels: int) -> dict[str, Any]:
    """Return what config.json must say beside `extra`: the names LABEL_0, ... where there are none for so many."""
    if len(extra.get("id2label", ())) == labels:
        return {}
    return named_classes([f"LABEL_{number}" for number in range(labels)])


def named_classes(names: Sequence[str]) -> dict[str, Any]:
    """Return the names of classes as config.json has them."""
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def without_class_names(extra: dict[str, Any]) -> dict[str, Any]:
    """Return the rest of a configuration without the names of classes, for a head that has others."""
    return {key: value for key, value in extra.items() if key not in ("id2label", "label2id", "num_labels")}
