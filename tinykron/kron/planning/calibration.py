"""What a model's matrices see of a text: the second moment of each one's inputs, and how often each row is looked up.

One pass, in float64. The model itself is not touched: a copy that shares its parameters has a watch around each matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tinykron.backend import Array, to_host, xp_of
from tinykron.errors import DataError, TinykronError
from tinykron.nn import Embedding, Linear, Module, sharing_copy
from tinykron.support.progress import Progress
from tinykron.tensor import Tensor, no_grad
from tinykron.threads import return_memory

STRIP = 256  # columns of a second moment that are added up at a time; below the diagonal only
SAMPLE_TOKENS = 1024  # that are kept, to measure predictions on


class SecondMoment:
    """The sum of x x^T over the rows x (D,) of all inputs, half of the symmetric matrix: float64, until `finish`."""

    def __init__(self, width: int) -> None:
        self.width, self.rows = width, 0
        self._strips: list[Array] | None = None
        self._dtype: Any = np.float64

    @staticmethod
    def bytes(width: int) -> int:
        """Return what a moment of that width takes in memory."""
        return sum(8 * (width - start) * min(STRIP, width - start) for start in range(0, width, STRIP))

    def add(self, x: Array) -> None:
        """Add the rows of x (..., D)."""
        x_TD = x.reshape(-1, self.width)
        xp, starts = xp_of(x), range(0, self.width, STRIP)
        parts = (x_TD[:, start:].T @ x_TD[:, start : start + STRIP] for start in starts)
        if self._strips is None:
            self._strips = [xp.zeros((self.width - start, min(STRIP, self.width - start))) for start in starts]
        for strip, part in zip(self._strips, parts, strict=True):
            strip += part
        self.rows += len(x_TD)
        self._dtype = x.dtype

    def finish(self) -> None:
        """Keep the sum as exactly as the products were that it is made of: in float32, half of the memory."""
        self._strips = [strip.astype(self._dtype) for strip in self._strips or ()] or None

    @property
    def finite(self) -> bool:
        return all(bool(xp_of(strip).isfinite(strip).all()) for strip in self._strips or ())

    def mean(self) -> Array:
        """Return the mean of x x^T, (D, D). Raises DataError before any row was added."""
        if self._strips is None or not self.rows:
            raise DataError("second moment: no inputs were seen")
        xp = xp_of(self._strips[0])
        whole = xp.empty((self.width, self.width))
        for start, strip in zip(range(0, self.width, STRIP), self._strips, strict=True):
            stop = start + strip.shape[1]
            whole[start:, start:stop] = strip
            whole[start:stop, stop:] = strip[stop - start :].T
        whole *= 1.0 / self.rows
        return whole


@dataclass
class Calibration:
    """What was seen, by name of the matrix. Matrices that share their inputs, as query and key do, share a moment."""

    tokens: int = 0
    sample: np.ndarray = field(default_factory=lambda: np.zeros((1, 0), np.int64))  # (B, T) ids of the text
    moments: dict[str, SecondMoment] = field(default_factory=dict)  # of inputs; of a table, those as an output head
    counts: dict[str, np.ndarray] = field(default_factory=dict)  # of each row of a table that was looked up, (V,)

    @property
    def bytes(self) -> int:
        """Of memory, once the pass over the text is done."""
        different = {id(moment): moment for moment in self.moments.values()}
        widths = sum(SecondMoment.bytes(moment.width) for moment in different.values())
        return widths + sum(counts.nbytes for counts in self.counts.values())

    def covariance(self, name: str) -> Array | None:
        """Return the second moment of a matrix's inputs, (D, D) float64; None where it has none."""
        return self.moments[name].mean() if name in self.moments else None

    def frequencies(self, name: str) -> np.ndarray | None:
        """Return how often each row of a table was looked up, plus one; None if it was no table that was read.

        One is added, so that a token absent from the text still counts. ProcrustesGPT (arXiv 2506.02818) does the same.
        """
        return self.counts[name] + 1.0 if name in self.counts else None


def calibrate(
    model: Module,
    batches: Sequence[np.ndarray],
    names: Iterable[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> Calibration:
    """Return what the matrices of a model see of a text, in one pass.

    batches  of token ids (B, T), as the model takes them
    names    of the matrices to watch; by default every Linear and Embedding
    say      is told how much memory that takes, before it starts
    Raises DataError where there is nothing to read, TinykronError naming the matrix whose inputs are not finite.
    """
    if not sum(ids.size for ids in batches):
        raise DataError("calibration: found no tokens, expected a text to read")
    found = trace(model, batches[0][:1, :2], set(names) if names is not None else None)
    found.sample = batches[0][: max(1, SAMPLE_TOKENS // batches[0].shape[1])]
    if say:
        say(f"calibration: {found.bytes / 1e6:,.1f} MB of second moments of {len(found.moments)} matrices")
    added: list[Any] = [None, None]

    def note(name: str, x: Any) -> None:
        if isinstance(x, Tensor):
            if added[0] is not x or added[1] is not found.moments[name]:  # once for all that share it
                found.moments[name].add(x.data)
                added[:] = x, found.moments[name]
        else:
            found.counts[name] += np.bincount(x.reshape(-1), minlength=len(found.counts[name]))

    watched = _watched(model, note, {*found.moments, *found.counts})
    with Progress("calibrating", sum(ids.size for ids in batches), "tokens") as progress:
        for ids in batches:
            with no_grad():
                watched(ids)
            found.tokens += ids.size
            progress.advance(ids.size)
    for name, moment in found.moments.items():
        if not moment.finite:
            raise TinykronError(f"calibration: the inputs of {name} hold NaN or infinite values")
        moment.finish()
    return_memory()
    return found


def trace(model: Module, ids: np.ndarray, names: set[str] | None = None) -> Calibration:
    """Return an empty calibration: run a few tokens through a model to see what its matrices are given, and share."""
    found = Calibration()
    inputs: list[tuple[Tensor, SecondMoment]] = []

    def note(name: str, x: Any) -> None:
        if not isinstance(x, Tensor):
            found.counts[name] = np.zeros(len(model.get(name).weight))
            return
        shared = next((moment for other, moment in inputs if other is x), None)
        found.moments[name] = shared or SecondMoment(x.shape[-1])
        inputs.append((x, found.moments[name]))  # which also keeps x: no other takes its place

    with no_grad():
        _watched(model, note, names)(ids)
    return found


class Watched(Module):
    """A matrix that tells what it is given, and answers as ever."""

    def __init__(self, inner: Any, tell: Callable[[Any], None]) -> None:
        self.inner, self.tell = inner, tell

    def forward(self, x: Any, *rest: Any) -> Tensor:
        """x of a Linear, or ids of a table."""
        result = self.inner(x, *rest)  # which checks what it is given
        self.tell(x if isinstance(x, Tensor) else np.asarray(x) if isinstance(x, (list, tuple, int)) else to_host(x))
        return result

    def project(self, x: Tensor) -> Tensor:
        self.tell(x)
        return self.inner.project(x)


def _watched(model: Module, note: Callable[[str, Any], None], names: set[str] | None) -> Module:
    """Return a copy of the model that shares its parameters, with a watch around the named matrices."""
    watches: dict[Module, Module] = {}
    for name, module in model.modules():
        if isinstance(module, Linear | Embedding) and (names is None or name in names) and module not in watches:
            watches[module] = Watched(sharing_copy(module), partial(note, name))
    return sharing_copy(model, watches).eval()
