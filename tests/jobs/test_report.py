"""Figures of a report, and the courses of its losses. Its forms are tested with the recipe that fills them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny_training import SHORT
from tinykron.jobs.report import gradient_shares, loss_table, plot_losses, term_courses
from tinykron.train.settings import History

# Losses ---------------------------------------------------------------------------------------------------------------


def history(**content: Any) -> History:
    """Two terms, of which one counts later; the gradient was measured twice."""
    terms = [{"hidden": 4.0 - step / 10} | ({"logits": float(step)} if step else {}) for step in range(40)]
    norms = [(0, {"hidden": 2.0}), (30, {"hidden": 1.0, "logits": 3.0})]
    return History(SHORT, **({"steps": 40, "terms": terms, "term_norms": norms} | content))


def test_courses_hold_a_term_where_it_counted():
    courses = term_courses(history())
    assert courses["hidden"][0] == list(range(40))
    assert courses["logits"] == (list(range(1, 40)), [float(step) for step in range(1, 40)])


def test_shares_are_of_the_sum_of_norms():
    assert gradient_shares(history()) == {"hidden": ([0, 30], [1.0, 0.25]), "logits": ([30], [0.75])}
    assert gradient_shares(history(term_norms=[(0, {"hidden": 0.0, "logits": 0.0})]))["hidden"] == ([0], [0.0])


def test_the_table_of_losses():
    table = loss_table({"one": history(), "other": history(term_norms=[])})
    rows = table.rows
    assert rows == [
        ["one", "hidden", "4", "0.15", "100%", "25%"],  # the mean of the last 2 of 40
        ["one", "logits", "1", "39", "75%", "75%"],  # the last 1 of 39
        ["other", "hidden", "4", "0.15", "", ""],
        ["other", "logits", "1", "39", "", ""],
    ]
    assert {len(row) for row in rows} == {len(table.headings)}


@pytest.mark.parametrize("content", [{}, {"term_norms": []}, {"terms": [{"hidden": 0.0}] * 3}, {"terms": []}], ids=str)
def test_losses_are_drawn(tmp_path, content):
    plot_losses({"one": history(**content), "other": history()}, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_has_each_term_and_each_share(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn: list[tuple[str, list[float], list[float]]] = []
    monkeypatch.setattr(Axes, "legend", lambda self: None)
    plot = Axes.plot

    def seen(self: Any, x: Any, y: Any, **options: Any) -> Any:
        drawn.append((options["label"], list(x), list(y)))
        return plot(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", seen)
    plot_losses({"one": history()}, tmp_path / "losses.png")
    tokens = SHORT.tokens_per_step
    found = {(label, len(x)): (x, y) for label, x, y in drawn}
    assert found["hidden", 40] == ([tokens * (step + 1) for step in range(40)], [4.0 - step / 10 for step in range(40)])
    assert found["hidden", 2] == ([tokens, 31 * tokens], [1.0, 0.25])
    assert found["logits", 1] == ([31 * tokens], [0.75])
