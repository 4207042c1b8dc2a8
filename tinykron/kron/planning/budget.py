"""One option for each matrix so that the total loss is least within budgets: prices, then an exact finish.

For any prices of the costs, letting each matrix take its cheapest option gives a lower bound on the best total loss:
that of the best prices is within a matrix or two of it. What they leave of the budgets is spent where it saves most.
Options that can be part of no better choice are struck out, and what is left is merged matrix by matrix. The duality
gap says how far from the best the outcome can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinykron.errors import TinykronError

HALVINGS = 60  # of the interval that a price lies in
STATES = 20_000  # partial choices that the finish keeps; more are cut, the most promising staying
MERGED = 1 << 20  # states times the options of the next matrix, at most


def amount(budget: float, whole: float) -> float:
    """Return a budget as a number: up to 1 it is a share of the whole, above it is one already."""
    return budget * whole if budget <= 1 else budget


@dataclass(frozen=True)
class Options:
    """What one matrix can become: K options."""

    loss: np.ndarray  # (K,) float64
    costs: np.ndarray  # (C, K) float64, one row for each budget


@dataclass(frozen=True)
class Allocation:
    """The option that each matrix takes."""

    chosen: list[int]
    loss: float  # of all together
    bound: float  # no choice within the budgets has less
    exact: bool  # whether the finish looked at all that could be better
    prices: np.ndarray  # (C,) of the costs, at which the bound was found

    @property
    def gap(self) -> float:
        """How far above the bound the loss is, as a share of the loss; 0 where it is the best."""
        return 0.0 if self.exact or self.loss <= 0.0 else max(0.0, 1.0 - self.bound / self.loss)


def allocate(options: Sequence[Options], budgets: Sequence[float], finish: bool = True) -> Allocation:
    """Return the choice of least total loss whose total costs are within the budgets.

    finish  or else what prices lead to, and spending what they leave: a fraction of the time
    Raises BudgetError for a budget that cannot be met, TinykronError for budgets that cannot be met together.
    """
    limits = np.asarray(budgets, float)
    least = sum(option.costs.min(axis=1) for option in options)
    for number, (need, limit) in enumerate(zip(least, limits, strict=True)):
        if need > limit:
            raise BudgetError(number, float(need), float(limit))
    search = _Search(options, limits)
    if len(limits) == 1:
        search.raise_price(0, np.zeros(1))
    else:
        search.raise_prices(np.zeros(len(limits)))
    search.spend()
    return search.finished() if finish else search.priced_only()


class BudgetError(TinykronError):
    """A budget that no choice meets."""

    def __init__(self, number: int, least: float, limit: float) -> None:
        super().__init__(f"budget {number} of {limit:,.0f} cannot be met: the least is {least:,.0f}")
        self.number, self.least, self.limit = number, least, limit


class _Search:
    """The best bound, and the best choice within the budgets, of all prices tried."""

    def __init__(self, options: Sequence[Options], limits: np.ndarray) -> None:
        self.options, self.limits = options, limits
        self.bound, self.prices = -np.inf, np.zeros(len(limits))
        self.loss = np.inf
        self.chosen: list[int] = []
        worst = sum(float(option.loss.max()) for option in options)
        self.dearest = 4.0 * max(worst, 1e-300) / np.maximum(limits, 1.0) * max(1.0, float(limits.max()))

    def priced(self, prices: np.ndarray) -> np.ndarray:
        """Let each matrix take its cheapest option, and return the total costs (C,)."""
        chosen, total, costs = [], -float(prices @ self.limits), np.zeros(len(prices))
        for option in self.options:
            priced = option.loss + prices @ option.costs
            best = int(priced.argmin())
            chosen.append(best)
            total += float(priced[best])
            costs += option.costs[:, best]
        if total > self.bound:
            self.bound, self.prices = total, prices.copy()
        loss = sum(float(option.loss[best]) for option, best in zip(self.options, chosen, strict=True))
        if np.all(costs <= self.limits) and loss < self.loss:
            self.loss, self.chosen = loss, chosen
        return costs

    def raise_price(self, number: int, prices: np.ndarray) -> np.ndarray:
        """Find the price of one cost at which its total just fits, the others given; return the total costs."""
        prices = prices.copy()
        prices[number] = 0.0
        costs = self.priced(prices)
        if costs[number] <= self.limits[number]:
            return costs
        low, high = 1e-18 * self.dearest[number], self.dearest[number]
        for _ in range(HALVINGS):  # of the exponent: prices span many orders
            prices[number] = np.sqrt(low * high)
            costs = self.priced(prices)
            low, high = (prices[number], high) if costs[number] > self.limits[number] else (low, prices[number])
        prices[number] = high
        return self.priced(prices)

    def raise_prices(self, prices: np.ndarray) -> None:
        """The same for two costs: the bound is concave, so the second price can be halved in on, too."""
        costs = self.raise_price(0, prices)
        if costs[1] <= self.limits[1]:
            return
        low, high = 1e-18 * self.dearest[1], self.dearest[1]
        for _ in range(HALVINGS):
            prices[1] = np.sqrt(low * high)
            costs = self.raise_price(0, prices)
            low, high = (prices[1], high) if costs[1] > self.limits[1] else (low, prices[1])
        prices[1] = high
        self.raise_price(0, prices)

    def spend(self) -> None:
        """Change the choice, one matrix at a time, where what is left of the budgets saves the most loss."""
        while self.chosen:
            taken = list(zip(self.options, self.chosen, strict=True))
            left = self.limits - sum(option.costs[:, number] for option, number in taken)
            saved, better = np.zeros(len(taken)), list(self.chosen)
            for matrix, (option, number) in enumerate(taken):
                fits = np.all(option.costs - option.costs[:, [number]] <= left[:, None], axis=0)
                best = int(np.where(fits, option.loss, np.inf).argmin())
                saved[matrix], better[matrix] = option.loss[number] - option.loss[best], best
            matrix = int(saved.argmax())
            if saved[matrix] <= 0.0:
                return
            self.chosen = [*self.chosen[:matrix], better[matrix], *self.chosen[matrix + 1 :]]
            self.loss = sum(float(option.loss[n]) for option, n in zip(self.options, self.chosen, strict=True))

    def priced_only(self) -> Allocation:
        """Return the best choice that was met on the way."""
        return self._allocation(self.chosen, self.loss, exact=False)

    def _allocation(self, chosen: list[int], loss: float, exact: bool) -> Allocation:
        if not chosen:  # each budget can be met, but not all of them together
            raise TinykronError("the budgets can each be met, but no choice was found that meets all of them")
        return Allocation(chosen, loss, min(self.bound, loss), exact, self.prices)

    def finished(self) -> Allocation:
        """Merge, matrix by matrix, the options that may be part of a better choice than the one in hand."""
        slack = self.loss - self.bound
        kept = []
        for option in self.options:
            priced = option.loss + self.prices @ option.costs
            kept.append(np.flatnonzero(priced <= priced.min() + slack + 1e-9 * abs(float(priced.min()))))
        rest = [  # of the matrices from each on: least priced loss, least costs
            (0.0, np.zeros(len(self.limits)))
        ]
        for option, indices in zip(reversed(self.options), reversed(kept), strict=True):
            priced = option.loss[indices] + self.prices @ option.costs[:, indices]
            rest.append((rest[-1][0] + float(priced.min()), rest[-1][1] + option.costs[:, indices].min(axis=1)))
        rest.reverse()
        loss, costs = np.zeros(1), np.zeros((len(self.limits), 1))
        steps: list[tuple[np.ndarray, np.ndarray]] = []  # for each matrix: from which state, by which option
        exact = True
        for number, (option, indices) in enumerate(zip(self.options, kept, strict=True)):
            loss = (loss[:, None] + option.loss[indices]).reshape(-1)
            costs = (costs[:, :, None] + option.costs[:, None, indices]).reshape(len(self.limits), -1)
            least_loss, least_costs = rest[number + 1]
            bound = loss + self.prices @ costs + least_loss - float(self.prices @ self.limits)
            fits = np.all(costs + least_costs[:, None] <= self.limits[:, None], axis=0)
            order = np.flatnonzero(fits & (bound <= self.loss + 1e-9 * np.abs(bound)))
            order = order[np.lexsort((loss[order], costs[0][order]))]
            if len(self.limits) == 1:  # a state that costs more and loses more than another is no use
                order = order[loss[order] < np.append(np.inf, np.minimum.accumulate(loss[order])[:-1])]
            options_next = len(kept[number + 1]) if number + 1 < len(kept) else 1
            most = min(STATES, max(1, MERGED // options_next))
            if len(order) > most:
                order, exact = order[np.argsort(bound[order], kind="stable")[:most]], False
            steps.append((order // len(indices), indices[order % len(indices)]))
            loss, costs = loss[order], costs[:, order]
        chosen, total = self.chosen, self.loss
        if len(loss) and float(loss.min()) < total:
            state, total, chosen = int(loss.argmin()), float(loss.min()), []
            for before, taken in reversed(steps):
                chosen.append(int(taken[state]))
                state = int(before[state])
            chosen.reverse()
        return self._allocation(chosen, total, exact)
