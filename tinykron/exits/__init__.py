"""Training and using several depths of one model: sorted losses, grids, thresholds with a promise."""

from tinykron.decode.sampling import confidence
from tinykron.exits.losses import SortedLoss, depth_weights, equal_weights, exit_loss
from tinykron.exits.promises import (
    Calibration,
    Candidate,
    Tested,
    binomial_tail,
    calibrate,
    ladder,
    losses_by_confidence,
    prompts_needed,
)

__all__ = [
    "Calibration", "Candidate", "SortedLoss", "Tested", "binomial_tail", "calibrate", "confidence", "depth_weights",
    "equal_weights", "exit_loss", "ladder", "losses_by_confidence", "prompts_needed",
]  # fmt: skip
