"""Training and using several depths of one model: sorted losses, grids, thresholds with a promise."""

from typing import TYPE_CHECKING, Any

from tinykron.decode.sampling import confidence
from tinykron.exits.losses import SortedLoss, depth_weights, equal_weights, exit_loss
from tinykron.exits.promises import (
    Candidate,
    Promised,
    Tested,
    binomial_tail,
    ladder,
    losses_by_confidence,
    promise,
    prompts_needed,
)
from tinykron.support import renamed

__all__ = [
    "Candidate", "Promised", "SortedLoss", "Tested", "binomial_tail", "confidence", "depth_weights",
    "equal_weights", "exit_loss", "ladder", "losses_by_confidence", "promise", "prompts_needed",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker is told of no old name

    def __getattr__(name: str) -> Any:
        """Find a name of the version before, with a warning that says the new one."""
        new = {"calibrate": "promise", "Calibration": "Promised"}.get(name)
        if new is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        renamed.deprecated(f"tinykron.exits.{name}", f"tinykron.exits.{new}")
        return globals()[new]
