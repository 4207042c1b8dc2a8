"""What the operators do to each factor of a Kronecker product, and how they put the outcomes together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from math import exp, inf, log
from sys import float_info
from typing import Any

import numpy as np

from tinykron.backend import Array, linalg_errors, xp_of
from tinykron.errors import ShapeError, TinykronError
from tinykron.kron.algebra import Shape

Scalar = Any  # a Python number: float, or complex where the factors are


class Factored:
    """Factors of one dtype and device, and what is done to each of them: the part of a Kron that knows no product."""

    factors: tuple[Array, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(factor.shape for factor in self.factors)

    @property
    def square_factors(self) -> bool:
        return all(m == n for m, n in self.shapes)

    def each(self, what: str, function: Callable[[Array], Any]) -> list[Any]:
        """Return function(factor) for every factor. Raises TinykronError naming a factor that has no `what`."""
        return [self.attempt(place, what, function) for place in range(len(self.factors))]

    def attempt(self, place: int, what: str, function: Callable[..., Any], *others: Array) -> Any:
        """Return function(factor, *others) for the factor at a place. Raises TinykronError, as `each` does."""
        with linalg_errors(self.factors[place]):
            try:
                return function(self.factors[place], *others)
            except np.linalg.LinAlgError as error:
                raise TinykronError(f"factor {place + 1} of {self!r} has no {what}: {error}") from None

    def check_square(self, what: str) -> None:
        """Raise ShapeError unless every factor is square."""
        if not self.square_factors:
            raise ShapeError(f"{self!r} has no {what}: a factor is not square")

    def check_symmetric(self, what: str) -> None:
        """Raise ShapeError or TinykronError unless every factor equals its conjugate transpose, up to rounding."""
        self.check_square(what)
        for place, factor in enumerate(self.factors, 1):
            norm, epsilon = xp_of(factor).linalg.norm, float(np.finfo(factor.dtype).eps)
            if not number(norm(factor - factor.conj().T)) <= len(factor) * epsilon * number(norm(factor)):  # or NaN
                raise TinykronError(f"factor {place} of {self!r} has no {what}: it is not symmetric")

    def check_alike(self, other: Any) -> None:
        """Raise ShapeError unless the factors of another product have the same shapes."""
        if not isinstance(other, Factored) or self.shapes != other.shapes:
            raise ShapeError(f"expected factors of the same shapes, found {self!r} and {other!r}")


def outer(a: Array, b: Array) -> Array:
    """Return a x b as an array; of two vectors, too."""
    if a.ndim == 1:
        return (a[:, None] * b[None, :]).reshape(-1)
    return (a[:, None, :, None] * b[None, :, None, :]).reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])


def products(vectors: Iterable[Array]) -> Array:
    """Return every product of one entry of each vector, the last vector's entries changing fastest."""
    return reduce(outer, vectors)


def number(value: Any) -> Any:
    """Return a 0-d array or NumPy scalar as a Python number; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def exponential(sign: Scalar, logarithm: float) -> Scalar:
    """Return sign * exp(logarithm); infinite where that is beyond a float."""
    return sign * (exp(logarithm) if logarithm < log(float_info.max) else inf)


def reciprocal(values: Array, kept: Array) -> Array:
    """Return 1 / values where `kept`, 0 elsewhere."""
    xp = xp_of(values)
    return xp.where(kept, 1.0 / xp.where(kept, values, 1.0), 0.0).astype(values.dtype)
