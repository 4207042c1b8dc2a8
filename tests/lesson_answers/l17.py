from __future__ import annotations

from tests.lesson_answers import Answers, Wrong
from tinykron.distill.objective import total
from tinykron.fused import cross_entropy


def summed(served, targets):
    return total([cross_entropy(logits, targets) for logits in served.values()])


def averaged_logits(served, targets):
    return cross_entropy(total(list(served.values())) * (1 / len(served)), targets)


def plain_number(served, targets):
    return summed(served, targets).item() / len(served)


def detached(served, targets):
    return total([cross_entropy(served[max(served)], targets)] + [cross_entropy(one.detach(), targets) for one in
                  list(served.values())[:-1]]) * (1 / len(served))  # fmt: skip


ANSWERS = Answers(
    wrong=[
        Wrong("sorted_loss", summed, "That is the sum"),
        Wrong("sorted_loss", lambda served, targets: cross_entropy(served[max(served)], targets), "plain training"),
        Wrong("sorted_loss", lambda served, targets: cross_entropy(served[min(served)], targets), "first exit"),
        Wrong("sorted_loss", averaged_logits, "averaged logits"),
        Wrong("sorted_loss", plain_number, "cannot go backward", "error"),
        Wrong("sorted_loss", detached, "value 2 of your answer"),
        Wrong("sampled_loss", lambda losses, w, drawn: sum(w[n] * losses[n] for n in drawn) / len(drawn), "twice"),
        Wrong("sampled_loss", lambda losses, w, drawn: sum(w[n] * losses[n] for n in drawn), "expected"),
        Wrong("sampled_loss", lambda losses, w, drawn: sum(losses[n] for n in drawn) / len(drawn), "add up to one"),
        Wrong("sampled_loss", lambda losses, w, drawn: sum(w.values()) * sum(losses[n] for n in drawn), "their mean"),
        Wrong("sampled_loss", lambda losses, w, drawn: sum(w[n] * losses[n] for n in w), "KeyError", "error"),
        Wrong("sampled_loss", lambda losses, w, drawn: None, "return", "todo"),
    ],
    widgets={"depth": (1, 8), "moment": (0, 4), "guess_2": ("all four, for every block", None)},
    pictures=5,
)
