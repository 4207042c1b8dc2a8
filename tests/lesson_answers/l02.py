from __future__ import annotations

from tests.lesson_answers import Answers, Wrong


def depth_first(inputs, root):
    seen, stack = [], [root]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.append(node)
            stack.extend(inputs[node])
    return seen


def breadth_first(inputs, root):
    order, at = [root], 0
    while at < len(order):
        order += [source for source in inputs[order[at]] if source not in order]
        at += 1
    return order


def recursive(inputs, root):
    order = []

    def visit(node):
        if node not in order:
            for source in inputs[node]:
                visit(source)
            order.append(node)

    visit(root)
    return order[::-1]


def with_repeats(inputs, root):
    return [root] + [node for source in inputs[root] for node in with_repeats(inputs, source)]


def overwritten(order, edges):
    found = {order[0]: 1.0}
    for node in order:
        for source, slope in edges[node]:
            found[source] = found[node] * slope
    return found


def slopes_added(order, edges):
    found = dict.fromkeys(order, 0.0) | {order[0]: 1.0}
    for node in order:
        for source, slope in edges[node]:
            found[source] += slope
    return found


def one_use(order, edges):
    found = dict.fromkeys(order, 0.0) | {order[0]: 1.0}
    for node in order:
        for source, slope in dict(edges[node]).items():
            found[source] += found[node] * slope
    return found


ANSWERS = Answers(
    wrong=[
        Wrong("backward_order", depth_first, "comes before"),
        Wrong("backward_order", breadth_first, "comes before"),
        Wrong("backward_order", recursive, "RecursionError", "error"),
        Wrong("backward_order", with_repeats, "more than once"),
        Wrong("backward_order", lambda inputs, root: list(inputs), "nothing to do with the root"),
        Wrong("backward_order", lambda inputs, root: [root], "is missing"),
        Wrong("backward_order", lambda inputs, root: [], "empty"),
        Wrong("backward_order", lambda inputs, root: recursive(inputs, root)[::-1], "begins with"),
        Wrong("gradients", overwritten, "replaces"),
        Wrong("gradients", slopes_added, "multiplied by the gradient"),
        Wrong("gradients", lambda order, edges: dict.fromkeys(order, 0.0), "gradient 1"),
        Wrong("gradients", one_use, "a square"),
        Wrong("gradients", lambda order, edges: [1.0], "AttributeError", "error"),
        Wrong("gradients", lambda order, edges: {order[0]: 1.0}, "nan"),
    ],
    widgets={
        "used": (-3.0, 3.0, 0.0),
        "guess_2": ("exp, tanh, product", None),
        "moment": (0, 3),
        "diamonds": (1, 60),
    },
    pictures=6,
)
