"""What an exit can have of its own on a frozen trunk."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from tinykron.errors import CheckpointError
from tinykron.models.checks import check_exit
from tinykron.models.transformer import Decoder
from tinykron.nn import Module

KINDS = {
    "heads": "a head each, read through the shared norm: Sorted LLaMA's SFT + ICT",
    "blocks": "a block and a norm each, before the shared head: Balcony (arXiv 2503.05005)",
}


class ExitPart(Module):
    """A head of one exit, or a block and a norm before the shared head."""

    def __init__(self, exit: int, head: Any = None, block: Any = None, norm: Any = None) -> None:
        self.exit, self.head, self.block, self.norm = exit, head, block, norm


def add_parts(model: Any, kind: str, exits: Sequence[int]) -> Any:
    """Give each of the exits its own part, a copy of what the last exit reads with; change `model` and return it.

    kind  a key of KINDS: "heads" or "blocks"
    Raises CheckpointError for another kind, and for a model that is no decoder.
    """
    if kind not in list(KINDS):
        raise CheckpointError(f"exit_parts: found {kind!r}, expected one of {', '.join(KINDS)}")
    if not isinstance(model, Decoder):
        raise CheckpointError(f"exit_parts: {kind} of exits are for decoders, found a {type(model).__name__}")
    parts = []
    for exit in exits:
        check_exit(exit, len(model.blocks) - 1, "exits")
        if kind == "heads":
            parts.append(ExitPart(exit, head=copy.deepcopy(model.head or model.embedding)))
        else:
            parts.append(ExitPart(exit, block=copy.deepcopy(model.blocks[-1]), norm=copy.deepcopy(model.norm)))
    model.exit_parts = parts
    return model


def kind_of(model: Any) -> str | None:
    """Return which kind of parts the exits of a model have; None where all share the model's own norm and head."""
    parts = model.exit_parts
    return None if not parts else "heads" if parts[0].head is not None else "blocks"
