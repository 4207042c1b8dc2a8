"""What a loss in one matrix does to a model: the divergence of its predictions when that matrix alone is replaced."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinykron.backend import to_host
from tinykron.kron.linear import KronEmbedding, KronLinear
from tinykron.kron.planning.calibration import Calibration
from tinykron.kron.planning.candidates import Candidates
from tinykron.kron.planning.factorise import fit_of
from tinykron.nn import Embedding, Linear, Module, sharing_copy
from tinykron.support.progress import Progress
from tinykron.tensor import no_grad

TRIED_SWEEPS = 2  # of the fit by which estimates are corrected: the first bring almost all
LEAST = 1e-9  # sensitivity of a matrix that changes nothing: the loss still counts a little
COMPARED = 1 << 23  # log-probabilities, at most, by which a sensitivity is measured: 32 MB, 166 tokens of GPT-2


def measured_sensitivities(
    model: Any,
    matrices: dict[str, Linear | Embedding],
    found: dict[str, Candidates],
    calibration: Calibration,
    share: float,
) -> dict[str, float]:
    """Return, by name, the divergence of the predictions per unit of loss, with that matrix alone compressed.

    found  is changed: where the fit that is tried shows an estimate to be off, the others of the matrix are, too
    share  of its parameters that each matrix is tried at
    """
    one = _predictions(sharing_copy(model).eval(), calibration.sample[:1, :1])
    ids = _some(calibration.sample, COMPARED // one.shape[-1])
    blocks = {block: Remembering(sharing_copy(block)) for block in getattr(model, "blocks", ())}
    reference = _predictions(sharing_copy(model, blocks).eval(), ids)
    result = {}
    with Progress("measuring", len(matrices), "matrices") as progress:
        for name, module in matrices.items():
            options = found[name]
            known = options.known()
            fits = np.flatnonzero(known.parameters <= share * options.dense[0] * options.dense[1])
            tried = int(fits[known.loss[fits].argmin()]) if len(fits) else 0
            choice = known.choice(tried)
            result[name] = LEAST
            if not choice.is_dense:
                fit = fit_of(module, name, choice, calibration, sweeps=TRIED_SWEEPS)
                kind = KronLinear if isinstance(module, Linear) else KronEmbedding
                new = kind.from_dense(module, fit)  # type: ignore[arg-type]
                before = dict(list(blocks.items())[: _first_block(name)])  # these answer as they did
                changed = sharing_copy(model, {module: new, **before}).eval()
                loss = max((fit.error or 0.0) ** 2, 1e-6)
                if known.estimated[tried]:
                    found[name] = options.corrected(loss / max(float(known.loss[tried]), 1e-6))
                result[name] = max(LEAST, divergence(reference, _predictions(changed, ids)) / loss)
            progress.advance(1, name)
    return result


class Remembering(Module):
    """A block that computes once, and gives the same answer ever after."""

    def __init__(self, inner: Module) -> None:
        self.inner, self.answer = inner, None

    def forward(self, *inputs: Any) -> Any:
        if self.answer is None:
            self.answer = self.inner(*inputs)
        return self.answer


def _first_block(name: str) -> int:
    """Return the number of the block that a matrix is in; 0 where it is in none, and may come before all of them."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else 0


def _some(ids: np.ndarray, tokens: int) -> np.ndarray:
    """Return at most so many tokens (but one at least) of windows (B, T): whole windows where one fits."""
    length = max(1, min(ids.shape[1], tokens))
    return ids[: max(1, tokens // length), :length]


def _predictions(model: Any, ids: np.ndarray) -> np.ndarray:
    """Return the log-probabilities (..., V) of a model with a head, the last hidden state (..., D) of one without."""
    with no_grad():
        out = model(ids)
    if out.logits is None:
        return to_host(out.hidden[-1].data).astype(np.float32)
    logits = to_host(out.logits.data)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def divergence(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the mean KL divergence of log-probabilities (..., V), in nats; of hidden states the relative square error.

    Never negative, and 0 only where the predictions are the same: a loss on so short a text would be mostly noise.
    """
    if np.exp(reference).sum(axis=-1).max() > 1.0 + 1e-3:  # no log-probabilities
        return float(((reference - other) ** 2).sum() / max(float((reference**2).sum()), 1e-30))
    return float((np.exp(reference) * (reference - other)).sum(axis=-1).mean())
