"""Sampling follows its law: temperature, top-k, top-p, and a seed that decides the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

import tinykron as tk
from tests.decoders import full_logits, tiny_gpt2
from tests.helpers import assert_close
from tinykron.decode.sampling import Certain, Sampler, distribution, draw
from tinykron.models.gpt2 import GPT2


def plain_law(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """The law of sampling, token by token: what `distribution` computes with sorts and sums."""
    weights = [float(np.exp((float(x) - float(logits.max())) / temperature)) for x in logits]
    if top_k is not None:
        least = sorted(weights, reverse=True)[: top_k or None][-1]
        weights = [w if w >= least else 0.0 for w in weights]
    total = sum(weights)
    law = [w / total for w in weights]
    if top_p is not None:
        reached, kept = 0.0, set()
        for token in sorted(range(len(law)), key=lambda token: (-law[token], token)):
            if reached >= top_p:
                break
            kept.add(token)
            reached += law[token]
        law = [p / reached if token in kept else 0.0 for token, p in enumerate(law)]
    return law


LAWS = [(1.0, None, None), (0.5, None, None), (2.0, 3, None), (1.0, None, 0.7), (1.5, 4, 0.8), (0.7, 5, 0.4)]


def draws(model: GPT2, prompt: list[int], **options: Any) -> np.ndarray:
    """Count 2,000 draws of the next token: 5 seeds, 400 rows with a stream each."""
    ids_BT = np.array([prompt] * 400)
    drawn = [tk.generate(model, ids_BT, max_new_tokens=1, seed=seed, **options)[:, -1] for seed in range(5)]
    return np.bincount(np.concatenate(drawn), minlength=model.config.vocab_size)


def follows(counts: np.ndarray, law: list[float]) -> bool:
    """Pearson's chi-square test: False where counts so far from the law have less than one chance in 10^5."""
    possible = np.array(law) > 0
    if counts[~possible].any():
        return False
    expected = np.array(law)[possible] * counts.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    return bool(statistic <= chi2.ppf(1 - 1e-5, max(1, int(possible.sum()) - 1)))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), LAWS)
def test_draws_follow_the_law(temperature, top_k, top_p):
    model = tiny_gpt2(7, vocabulary=7, spread=16.0).eval()
    counts = draws(model, [1, 2], temperature=temperature, top_k=top_k, top_p=top_p)
    logits = full_logits(model, [1, 2])
    assert follows(counts, plain_law(logits, temperature, top_k, top_p))
    for other in LAWS:  # the test can tell one law from another
        law = plain_law(logits, *other)
        if np.abs(np.array(law) - plain_law(logits, temperature, top_k, top_p)).max() > 0.1:
            assert not follows(counts, law)


logits_V = st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=1, max_size=12).map(np.array)


@given(
    logits=logits_V,
    temperature=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1.0),
)
def test_distribution_equals_the_plain_law(logits, temperature, top_k, top_p):
    expected = plain_law(logits, temperature, top_k, top_p)
    found = distribution(logits, temperature, top_k, top_p)
    sums = np.cumsum(sorted(plain_law(logits, temperature, top_k, None), reverse=True))
    if top_p is None or np.abs(sums - top_p).min() > 1e-9:  # nearer, the order of the additions decides
        assert_close(found, np.array(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1.0, [0.5, 0.25, 0.125, 0.125]),
        (0.875, [4 / 7, 2 / 7, 1 / 7, 0.0]),  # reached exactly; of two equals the lower id goes first
        (0.8750001, [0.5, 0.25, 0.125, 0.125]),
        (0.5, [1.0, 0.0, 0.0, 0.0]),
        (0.5000001, [2 / 3, 1 / 3, 0.0, 0.0]),
        (1e-30, [1.0, 0.0, 0.0, 0.0]),  # never empty
    ],
)
def test_top_p_at_its_edges(top_p, expected):
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
    assert_close(distribution(logits, 1.0, top_p=top_p), np.array(expected), rtol=1e-12)


def test_top_k_keeps_ties_and_takes_any_k():
    logits = np.array([1.0, 3.0, 3.0, 2.0])
    assert (distribution(logits, 1.0, top_k=1) > 0).tolist() == [False, True, True, False]
    assert_close(distribution(logits, 1.0, top_k=99), distribution(logits, 1.0))


@pytest.mark.parametrize("temperature", [1e-320, 1e-8])
def test_a_temperature_near_zero_is_greedy(temperature):
    assert distribution(np.array([0.0, 2.0, 1.999], np.float32), temperature).tolist() == [0.0, 1.0, 0.0]


def test_a_law_without_chance_is_the_greedy_one():
    logits = np.array([0.0, 2.0, 1.999, 2.0], np.float32)
    sampler = Sampler(0.0, 3, 0.5, 0, 1)
    law = sampler.law(logits)
    assert list(law) == distribution(logits, 0.0).tolist() and len(law) == 4 and law[-3] == 1.0
    assert sampler.chances[0].draw(law) == sampler.take(logits, 0) == 1
    assert sum(Certain(2, 3)) == 1.0 and list(Certain(0, 2)) == [1.0, 0.0]
    with pytest.raises(IndexError):
        law[4]


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (0.25, 3), (1 - 2**-53, 3)])
def test_no_draw_hits_a_probability_of_zero(uniform, expected):
    class Fixed:
        def random(self) -> float:
            return uniform

    assert draw(np.array([0.0, 0.25, 0.0, 0.75, 0.0]), Fixed()) == expected


def test_a_seed_decides_the_text(device):
    model = tiny_gpt2(8).eval()
    texts = [tk.generate(model, [1, 2], 20, temperature=1.0, seed=seed).tolist() for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    with tk.device("cpu"):  # every device draws alike
        assert tk.generate(tiny_gpt2(8).eval(), [1, 2], 20, temperature=1.0, seed=0).tolist() == texts[0]
