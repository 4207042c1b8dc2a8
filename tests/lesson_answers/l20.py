from __future__ import annotations

from tests.lesson_answers import Answers, Wrong


def front(dominates):
    def found(costs, losses):
        points = list(zip(costs, losses, strict=True))
        return [
            not any(dominates(*other, *mine) for j, other in enumerate(points) if j != i)
            for i, mine in enumerate(points)
        ]

    return found


def chosen(key, fits=lambda cost, budget: cost <= budget):
    def found(costs, losses, budget):
        left = [i for i in range(len(costs)) if fits(costs[i], budget)]
        return min(left, key=lambda i: key(costs[i], losses[i])) if left else None

    return found


ANSWERS = Answers(
    wrong=[
        Wrong("on_front", front(lambda a, b, c, d: a < c and b < d), "not both"),
        Wrong("on_front", front(lambda a, b, c, d: a <= c and b <= d), "Equal points"),
        Wrong("on_front", front(lambda a, b, c, d: a < c or b < d), "not enough"),
        Wrong(
            "on_front",
            lambda costs, losses: [all(losses[j] > losses[i] for j in range(i)) for i in range(len(costs))],
            "order of cost",
        ),
        Wrong("on_front", lambda costs, losses: [loss == min(losses) for loss in losses], "cheaper points"),
        Wrong("on_front", lambda costs, losses: min(losses), "one for each point", "error"),
        Wrong("choose", chosen(lambda cost, loss: -cost), "largest point"),
        Wrong("choose", chosen(lambda cost, loss: loss, lambda cost, budget: True), "does not fit"),
        Wrong("choose", chosen(lambda cost, loss: loss, lambda cost, budget: cost < budget), "at most"),
        Wrong("choose", chosen(lambda cost, loss: loss), "the cheaper one"),
        Wrong("choose", chosen(lambda cost, loss: cost), "cheapest point"),
        Wrong("choose", lambda costs, losses, budget: None, "return", "todo"),
    ],
    widgets={
        "kept": (1, 8),
        "row": (2, 8),
        "column": (1, 8),
        "moment": (0, 100),
        "budget": (20, 70),
        "guess_1": ("8 blocks of 2 terms: four times as many", None),
        "guess_3": ("yes: more numbers, less loss", None),
    },
    pictures=9,
)
