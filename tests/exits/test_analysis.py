"""Analyses of exits: against passes written plainly, one prompt, one exit and one position at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from tests.decoders import deep
from tests.helpers import host
from tinykron.decode.generate import generate
from tinykron.errors import DataError, TinykronError
from tinykron.exits import analysis as analysis
from tinykron.measure.perplexity import perplexity
from tinykron.tensor import no_grad

EXITS = (1, 2, 4)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
LENGTH = 6


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, device: str) -> Any:
    return deep(request.param, seed=0).to(device)


def test_losses_are_those_of_each_exit_alone(model: Any) -> None:
    tokens = np.random.default_rng(0).integers(0, 40, 50)
    found = analysis.losses(model, tokens, 16, EXITS)
    assert tuple(found) == EXITS
    assert np.exp(found[4]) == pytest.approx(perplexity(model, tokens, 16), rel=1e-5)
    logits = np.concatenate([plain(model, tokens[start : start + 16], 2) for start in range(0, 49, 16)])[:49]
    assert found[2] == pytest.approx(-log_softmax(logits, axis=-1)[np.arange(49), tokens[1:]].mean(), rel=1e-4)


def plain(model: Any, ids: Any, exit: int) -> np.ndarray:
    with no_grad():
        return host(model(np.asarray(ids)[None], exit=exit).logits)[0].astype(np.float64)


def state(model: Any, ids: Any, exit: int) -> np.ndarray:
    with no_grad():
        return host(model(np.asarray(ids)[None], exit=exit).hidden[-1])[0, -1].astype(np.float64)


def test_drift_is_that_of_one_position_at_a_time(model: Any) -> None:
    found = analysis.drift(model, PROMPTS, EXITS, LENGTH)
    kl, cosine, agree = np.zeros((3, len(EXITS), LENGTH))
    for prompt in PROMPTS:
        ids = generate(model, prompt, LENGTH, stop=())[0]
        for n in range(LENGTH):
            seen = ids[: len(prompt) + n]
            p, last = np.exp(log_softmax(plain(model, seen, 4)[-1])), state(model, seen, 4)
            for e, exit in enumerate(EXITS):
                q, own = np.exp(log_softmax(plain(model, seen, exit)[-1])), state(model, seen, exit)
                kl[e, n] += rel_entr(p, q).sum() / len(PROMPTS)
                cosine[e, n] += last @ own / np.linalg.norm(last) / np.linalg.norm(own) / len(PROMPTS)
                agree[e, n] += (p.argmax() == q.argmax()) / len(PROMPTS)
    np.testing.assert_allclose(found.kl_EN, kl, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.cosine_EN, cosine, atol=1e-5)
    np.testing.assert_allclose(found.agree_EN, agree)
    assert found.exits == EXITS and np.allclose(found.kl_EN[-1], 0.0, atol=1e-9) and found.agreement_E[-1] == 1.0


def test_exits_agree_with_what_they_may_say(model: Any) -> None:
    prompt = PROMPTS[0]
    ids = generate(model, prompt, LENGTH, stop=())[0]
    listed = np.array([9, 2, *np.setdiff1d(ids[len(prompt) :], [9, 2])[::2], 30])
    found = analysis.drift(model, [prompt], (2,), LENGTH, shortlist=listed).agree_EN[0]
    assert 0 < found.sum() < LENGTH
    for n in range(LENGTH):
        logits_V = plain(model, ids[: len(prompt) + n], 2)[-1]
        assert found[n] == (max(listed, key=lambda token: logits_V[token]) == ids[len(prompt) + n])


def test_drift_from_another_model_follows_its_text() -> None:
    model, other = deep("gpt2", seed=0), deep("gpt2", seed=1)
    found = analysis.drift(model, PROMPTS[:1], (2, 4), 1, reference=other)
    p, q = (np.exp(log_softmax(plain(each, PROMPTS[0], 4)[-1])) for each in (other, model))
    assert found.kl_EN[1, 0] == pytest.approx(rel_entr(p, q).sum(), rel=1e-3) and found.kl_EN[1, 0] > 0.1


def test_shares_of_thresholds_that_all_or_none_reach(model: Any) -> None:
    found = analysis.shares(model, PROMPTS, (1, 2), (0.0, 0.6, 1.0), LENGTH)
    assert found.depths == EXITS
    np.testing.assert_allclose(found.shares_LE.sum(axis=1), 1.0)
    np.testing.assert_array_equal(found.shares_LE[0], [1.0, 0.0, 0.0])  # everybody is as sure as nothing
    np.testing.assert_allclose(found.mean_depth_L[[0, 2]], [1.0, 4.0], atol=0.5)
    assert found.unchanged_L[2] == 1.0 and (np.diff(found.shares_LE[:, 0]) <= 0.0).all()


def test_a_plot_and_bad_input(tmp_path: Path) -> None:
    model = deep("gpt2", seed=0)
    drift, shares = analysis.drift(model, PROMPTS, EXITS, 3), analysis.shares(model, PROMPTS, (1, 2), (0.2, 0.9), 3)
    analysis.plot(drift, shares, tmp_path / "exits.png")
    assert (tmp_path / "exits.png").read_bytes().startswith(b"\x89PNG")
    for work in (analysis.drift, lambda *given: analysis.shares(*given, levels=(0.5,))):
        with pytest.raises(DataError, match="expected prompts, found none"):
            work(model, [], EXITS)
        with pytest.raises(TinykronError, match=r"exits: expected a number of blocks in 1\.\.4, found 5"):
            work(model, PROMPTS, (1, 5))
