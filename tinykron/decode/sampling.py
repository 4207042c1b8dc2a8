"""Which token comes next: the law that temperature, top-k and top-p make of logits, and draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinykron.errors import TinykronError


def distribution(
    logits_V: np.ndarray, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """Return the probabilities (V,), float64, that sampling draws from: temperature, then top-k, then top-p.

    Temperature 0 puts all on the most likely token; of equals on the lowest id.
    Tokens as likely as the k-th stay with it, so that more than k may remain. Top-p keeps the fewest most likely
    tokens whose probabilities, after top-k, add up to at least `top_p`: always one; of equals the lower id goes first.
    Top-k: Fan et al. 2018; top-p: Holtzman et al. 2020; the order and the ties are those of transformers.
    """
    if temperature == 0:
        certain = np.zeros(len(logits_V))
        certain[logits_V.argmax()] = 1.0
        return certain
    scores = logits_V.astype(np.float64)
    scores -= scores.max()
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the largest to -inf
        scores /= temperature
    if top_k is not None and top_k < len(scores):
        scores[scores < np.partition(scores, -top_k)[-top_k]] = -np.inf
    probabilities = np.exp(scores)
    probabilities /= probabilities.sum()
    if top_p is not None and top_p < 1.0:
        # Tokens below (1 - p) / V weigh less than 1 - p together: none is among those that reach p, none needs sorting.
        likely = np.flatnonzero(probabilities >= (1.0 - top_p) / len(probabilities))
        order = likely[np.argsort(-probabilities[likely], kind="stable")]
        kept = order[: np.searchsorted(np.cumsum(probabilities[order]), top_p) + 1]
        nucleus = np.zeros_like(probabilities)
        nucleus[kept] = probabilities[kept] / probabilities[kept].sum()
        return nucleus
    return probabilities


def draw(probabilities_V: np.ndarray, generator: np.random.Generator) -> int:
    """Draw an index by inverting the cumulative sum: one uniform number a token, and never one of probability 0."""
    reached_V = np.cumsum(probabilities_V)
    return int(np.searchsorted(reached_V, generator.random() * reached_V[-1], side="right"))


class Certain(Sequence[float]):
    """A law (V,) with all on one token: greedy decoding's. It is not written out, for a vocabulary is long."""

    def __init__(self, token: int, size: int) -> None:
        self.token, self.size = token, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        return float(range(self.size)[index] == self.token)  # an index out of range raises IndexError


class Sampler:
    """How each row of a generation takes its next token: from a law, with a random stream of its own, (seed, row).

    Raises TinykronError for an argument out of range.
    """

    def __init__(self, temperature: float, top_k: int | None, top_p: float | None, seed: int, rows: int) -> None:
        if not 0.0 <= temperature < float("inf"):
            raise TinykronError(f"temperature: expected a finite number >= 0, found {temperature}")
        if top_k is not None:
            whole("top_k", top_k, 1)
        if top_p is not None and not 0.0 < top_p <= 1.0:
            raise TinykronError(f"top_p: expected a probability in (0, 1], found {top_p}")
        whole("seed", seed, 0)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.chances = [Chance(np.random.default_rng((seed, row))) for row in range(rows)]

    def law(self, logits_V: np.ndarray) -> np.ndarray | Certain:
        """Return the probabilities (V,) of the next token."""
        if self.temperature == 0:
            return Certain(int(_finite(logits_V).argmax()), len(logits_V))
        return distribution(_finite(logits_V), self.temperature, self.top_k, self.top_p)

    def take(self, logits_V: np.ndarray, row: int) -> int:
        """Return the next token of a row."""
        if self.temperature == 0:
            return int(_finite(logits_V).argmax())
        return self.chances[row].draw(self.law(logits_V))


def _finite(logits_V: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits_V.max()):  # of numbers with a NaN among them the largest is NaN
        raise TinykronError("generate: the model's logits are not finite; its weights may be damaged")
    return logits_V


class Chance:
    """The random decisions of one row."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def draw(self, law_V: np.ndarray | Certain) -> int:
        """Return a token drawn from a law."""
        return law_V.token if isinstance(law_V, Certain) else draw(law_V, self.generator)

    def happens(self, probability: Any) -> bool:
        """Decide something of a given probability."""
        return bool(self.generator.random() < probability)


def whole(name: str, value: Any, least: int) -> int:
    """Return a whole number from `least` on. Raises TinykronError naming the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise TinykronError(f"{name}: expected a whole number >= {least}, found {value!r}")
    return int(value)


def confidence(logits: np.ndarray) -> np.ndarray:
    """Return the largest probability that the softmax of each row (..., V) gives, float64, of logits on the host.

    The measure by which Sorted LLaMA leaves early (section 4.3): no temperature.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return 1.0 / np.exp(shifted).sum(axis=-1, dtype=np.float64)
