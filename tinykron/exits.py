"""Early exits: how sure a token is, when thresholds keep a promise, and losses that make every exit usable."""

from __future__ import annotations

import numpy as np


def confidence(logits_BV: np.ndarray) -> np.ndarray:
    """Return the largest probability that the softmax of each row gives, (B,) float64, of logits on the host.

    The measure by which Sorted LLaMA leaves early (section 4.3): no temperature.
    """
    shifted_BV = logits_BV - logits_BV.max(axis=-1, keepdims=True)
    return 1.0 / np.exp(shifted_BV).sum(axis=-1, dtype=np.float64)
