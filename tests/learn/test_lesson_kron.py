"""Lesson 11's hunt for counterexamples: hypothesis does it where it is installed, the page itself where it is not."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("marimo", reason="the extra `lessons` is not installed")

from tests.learn.test_lessons import load


@pytest.mark.parametrize("installed", [True, False])
def test_the_hunt_finds_small_matrices_and_says_who_looked(monkeypatch, device, installed):
    lesson = load("l11_kron")
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def holds(product, a, b, c, d):
        left, right = product(a, b) @ product(c, d), product(a @ c, b @ d)
        return bool(abs(left - right).max() <= 1e-4 * abs(right).max())

    for name, none in [("B ⊗ A", True), ("sums in place of products", False)]:
        product = lesson.suspects()[name]
        found, who = lesson.hunt(lambda drawn, tried=product: not holds(tried, *lesson.four_that_fit(*drawn)), 20)
        assert who == ("hypothesis" if installed else "this page")
        assert (found is None) == none
        if found:
            assert sum(found[0]) <= 12
