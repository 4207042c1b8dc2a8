"""Confidence, thresholds whose promise is kept, and the losses of exits."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import comb, log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinykron as tk
from tests.bert_checkpoints import bert_tensors, with_class
from tests.checkpoints import write_folder
from tests.decoders import deep, greedy_by_confidence
from tests.helpers import assert_close, host
from tinykron.data.batch import Batch
from tinykron.decode import sampling
from tinykron.decode.generate import changes, generate
from tinykron.errors import ShapeError, TinykronError
from tinykron.exits import losses as exits_losses
from tinykron.exits import promises

IDS = np.random.default_rng(0).integers(0, 40, (3, 9))
BATCH = (IDS[:, :-1], np.where(np.arange(8) < np.array([[8], [5], [8]]), IDS[:, 1:], -100))

BATCH_32 = (np.array([[3]]), np.array([[4]]))


def law(logits_V: np.ndarray) -> np.ndarray:
    weights = np.exp(logits_V.astype(np.float64) - logits_V.max())
    return weights / weights.sum()


# Confidence -----------------------------------------------------------------------------------------------------------


@given(logits=st.lists(st.integers(-400, 400).map(lambda i: i / 8), min_size=1, max_size=9))
def test_confidence_is_the_largest_probability(logits):
    found = sampling.confidence(np.array([[logits]], np.float32))
    assert_close(found, np.array([[law(np.array(logits)).max()]]), rtol=1e-6)


@pytest.mark.parametrize("thresholds", [{}, {1: 0.0}, {1: 0.15, 3: 0.12}, {2: 1.0}])
def test_each_text_loses_what_its_tokens_lose_where_they_leave(device, thresholds):
    model = deep("llama", 2)
    found = promises.losses_by_confidence(model, BATCH, thresholds)
    served = {exit: host(logits) for exit, logits in model(BATCH[0], exits=(1, 2, 3, 4)).exits.items()}
    for row, targets in enumerate(BATCH[1]):
        losses = []
        for place, target in enumerate(targets):
            sure = [e for e in (1, 2, 3) if law(served[e][row, place]).max() >= thresholds.get(e, 2.0)]
            losses.append(-log(law(served[(*sure, 4)[0]][row, place])[target]) if target != -100 else 0.0)
        assert abs(found[row] - sum(losses) / (targets != -100).sum()) < 1e-5


def test_a_threshold_that_is_just_reached_is_reached(device):
    model = deep("gpt2", 0, vocabulary=32)
    model.norm.weight.data[:] = 0.0  # all tokens are equally likely
    for threshold, depth in ((1 / 32, 1), (1 / 32 + 1e-6, 4)):
        trace = tk.Trace()
        generate(model, [1, 2], 3, confidence={1: threshold}, trace=trace)
        assert (trace.depths == depth).all()
    model = deep("gpt2", 0, vocabulary=32)
    first, full = (promises.losses_by_confidence(model, BATCH_32, rule) for rule in ({1: 0.0}, {}))
    thresholds = sampling.confidence(host(model(BATCH_32[0], exit=1).logits).astype(np.float64))
    assert promises.losses_by_confidence(model, BATCH_32, {1: thresholds[0, 0]}) == pytest.approx(first)
    assert promises.losses_by_confidence(model, BATCH_32, {1: thresholds[0, 0] * 1.000001}) == pytest.approx(full)


# Thresholds with a promise --------------------------------------------------------------------------------------------


@given(trials=st.integers(1, 60), percent=st.integers(1, 99), data=st.data())
def test_the_binomial_tail_is_exact(trials, percent, data):
    count, p = data.draw(st.integers(0, trials)), Fraction(percent, 100)
    exact = sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(count + 1))
    assert promises.binomial_tail(count, trials, percent / 100) == pytest.approx(float(exact), rel=1e-9)


@given(
    prompts=st.integers(90, 400),
    percent=st.integers(5, 60),
    epsilon=st.sampled_from([0.01, 0.05, 0.2]),
    above=st.floats(0.0, 0.3),
)
def test_one_candidate_passes_wrongly_with_probability_epsilon_at_most(prompts, percent, epsilon, above):
    """Exactly, over every number of failures: the worst case is a true share of failures of just delta."""
    delta = percent / 100
    share = min(delta + above, 1.0)

    def passes(failures: int) -> bool:
        failed = np.arange(prompts) < failures
        return promises.promise(["one"], lambda _: failed, delta, epsilon).chosen is not None

    most = max((k for k in range(0, prompts, 1 + prompts // 50) if passes(k)), default=-1)
    while passes(most + 1):
        most += 1
    assert not passes(min(most + 1, prompts))
    wrong = promises.binomial_tail(most, prompts, share) if most >= 0 else 0.0
    assert wrong <= epsilon * (1 + 1e-9)


LADDER = np.linspace(1.0, 0.0, 41).tolist()


def true_share(threshold: float) -> float:
    """How often a prompt fails with a threshold, where that is known."""
    return 0.3 * (1.0 - threshold) ** 1.5


def plug_in(fails: Callable[[float], np.ndarray], delta: float) -> float | None:
    """The rule without a promise: the boldest threshold whose share of failures is still delta."""
    chosen = None
    for threshold in LADDER:
        if fails(threshold).mean() > delta:
            break
        chosen = threshold
    return chosen


def broken_promises(prompts: int, delta: float, epsilon: float, times: int) -> tuple[float, float]:
    """Return how often each rule chooses a threshold that fails more often than delta: ours, the plug-in rule."""
    generator, broken = np.random.default_rng(0), np.zeros(2)
    for _ in range(times):
        uniform_P = generator.random(prompts)  # a prompt fails from its own threshold on

        def fails(threshold: float, uniform_P: np.ndarray = uniform_P) -> np.ndarray:
            return uniform_P < true_share(threshold)

        ours = promises.promise(LADDER, fails, delta, epsilon).chosen
        for place, chosen in enumerate((ours, plug_in(fails, delta))):
            broken[place] += chosen is not None and true_share(chosen) > delta
    return tuple(broken / times)


@pytest.mark.parametrize(("prompts", "delta", "epsilon"), [(500, 0.05, 0.05), (2000, 0.02, 0.1), (200, 0.1, 0.2)])
def test_1500_calibrations_keep_the_promise_that_the_plug_in_rule_breaks(prompts, delta, epsilon):
    ours, theirs = broken_promises(prompts, delta, epsilon, 1500)
    assert ours <= epsilon < theirs


def test_candidates_are_tried_in_order_until_one_fails():
    failures, asked = {"a": 1, "b": 2, "c": 60, "d": 0}, []

    def fails(candidate: str) -> np.ndarray:
        asked.append(candidate)
        return np.arange(200) < failures[candidate]

    found = promises.promise(list("abcd"), fails, delta=0.1)
    assert (found.chosen, asked) == ("b", ["a", "b", "c"])
    assert [(one.candidate, one.failures) for one in found.tested] == [("a", 1), ("b", 2), ("c", 60)]
    assert str(found).endswith("with probability 0.95 over the prompts, at most a share of 0.1 fails with b")
    none = promises.promise(["c", "a"], fails, delta=0.1)
    assert none.chosen is None
    assert str(none).endswith("no candidate holds failures to a share of 0.1; leave early nowhere")


def test_a_ladder_goes_from_careful_to_bold():
    assert promises.ladder((2, 4), (0.5, 0.9)) == [{2: 0.9, 4: 0.9}, {2: 0.5, 4: 0.5}]


def test_a_models_thresholds_are_calibrated_on_its_own_texts():
    model = deep("gpt2", 2)
    prompts = [[first, second] for first in range(6) for second in range(5)]
    stop = int(generate(model, prompts, 3)[4, 3])
    asked = changes(model, prompts, 3, batch=20, stop=stop)
    levels = promises.ladder((1, 3), (0.9, 0.2, 0.1))
    expected = []
    for candidate in levels:
        texts = [[greedy_by_confidence(model, ids, 3, rule)[0][2:] for ids in prompts] for rule in ({}, candidate)]
        cut = [[text[: (*text, stop).index(stop) + 1] for text in side] for side in texts]
        expected.append([early != late for late, early in zip(*cut, strict=True)])
        assert asked(candidate).tolist() == expected[-1]
    assert not any(expected[0])
    assert any(expected[2])
    found = promises.promise(levels, asked, delta=0.3)
    assert found.chosen is not None
    assert found.tested[-1].failures == sum(expected[len(found.tested) - 1])
    assert generate(model, [1, 2], 4, confidence=found.chosen).shape[0] == 1


def test_a_text_that_ended_is_the_same_however_long_its_neighbours_are():
    """With token 7 as the stop, text 1 ends at once either way; text 24 does so only if it leaves early."""
    model = deep("gpt2", 2)
    assert generate(model, [[1], [24]], 3, stop=7).shape == (2, 4)
    assert generate(model, [[1], [24]], 3, stop=7, exit=1).tolist() == [[1, 7], [24, 7]]
    assert changes(model, [[1], [24]], 3, stop=7)({1: 0.0}).tolist() == [False, True]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"delta": 0.0}, TinykronError, r"delta: .*found 0.0"),
        ({"epsilon": 1.0}, TinykronError, r"epsilon: .*found 1.0"),
        ({"candidates": []}, TinykronError, r"at least one candidate"),
        ({"fails": lambda c: np.zeros(28, bool)}, TinykronError, r"28 prompts prove nothing.*at least 29 can"),
        ({"fails": lambda c: np.zeros(100)}, ShapeError, r"booleans \(prompts,\), found float64 \(100,\)"),
        ({"fails": lambda c: np.zeros((10, 10), bool)}, ShapeError, r"found bool \(10, 10\)"),
        ({"fails": lambda c: np.zeros(100 + c, bool)}, ShapeError, r"booleans \(101,\), found bool \(102,\)"),
    ],
)
def test_what_proves_nothing_is_refused(options, error, message):
    given_options = {"candidates": [1, 2], "fails": lambda c: np.zeros(100, bool), "delta": 0.1, **options}
    with pytest.raises(error, match=message):
        promises.promise(**given_options)


# Losses ---------------------------------------------------------------------------------------------------------------


def reference(model: Any, exit: int) -> float:
    """The mean cross-entropy of an exit over the targets that count, target by target."""
    logits_BTV = host(model(BATCH[0], exit=exit).logits)
    places = [(row, place, target) for (row, place), target in np.ndenumerate(BATCH[1]) if target != -100]
    return -sum(log(law(logits_BTV[row, place])[target]) for row, place, target in places) / len(places)


def gradients(model: Any, losses: Any) -> list[np.ndarray]:
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return [host(p.grad) if p.grad is not None else np.zeros(p.shape, np.float32) for p in model.parameters()]


def assert_gradients(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    scale = max(float(np.abs(gradient).max()) for gradient in expected)
    assert all(np.abs(one - other).max() <= 1e-5 * scale for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("weights", [{1: 1 / 3, 2: 1 / 3, 4: 1 / 3}, {3: 2.0, 1: 0.5}, {2: 0.0, 4: 1.0}])
def test_the_loss_is_the_weighted_sum_of_the_exits(device, weights):
    model = deep("gpt2", 1)
    loss, terms = exits_losses.exit_loss(model, BATCH, weights)
    counted = {exit: weight for exit, weight in weights.items() if weight}
    expected = {exit: reference(model, exit) for exit in counted}
    assert terms == pytest.approx({f"exit {exit}": value for exit, value in expected.items()}, rel=1e-5)
    assert loss.item() == pytest.approx(sum(weights[exit] * expected[exit] for exit in counted), rel=1e-5)
    apart = [exits_losses.exit_loss(model, BATCH, {exit: weight})[0] for exit, weight in counted.items()]
    assert_gradients(gradients(model, [loss]), gradients(model, apart))


def test_equal_weights_are_the_mean():
    assert exits_losses.equal_weights((2, 4, 6, 8)) == {2: 0.25, 4: 0.25, 6: 0.25, 8: 0.25}


@pytest.mark.parametrize("weights", [{1: 1.0, 3: 1.0, 4: 1.0}, {1: 0.5, 4: 1.5}])
@pytest.mark.parametrize("draws", [1, 2])
def test_sampled_losses_give_the_same_gradient_on_average(weights, draws):
    """An identity: the mean over all ways in which exits can be drawn, each as likely as it is."""
    model, asked = deep("gpt2", 3), []
    shares = {exit: weight / sum(weights.values()) for exit, weight in weights.items()}
    mean = [np.zeros(parameter.shape, np.float64) for parameter in model.parameters()]
    for drawn in product(weights, repeat=draws):

        def choice(found: list[int], size: int, p: Any, drawn: tuple[int, ...] = drawn) -> list[int]:
            asked.append((size, dict(zip(found, p.tolist(), strict=True))))
            return list(drawn)

        losses = exits_losses.sampled_losses(model, BATCH, weights, draws, SimpleNamespace(choice=choice))
        likely = np.prod([shares[exit] for exit in drawn])
        for total, gradient in zip(mean, gradients(model, losses), strict=True):
            total += likely * gradient
    assert_gradients(mean, gradients(model, [exits_losses.exit_loss(model, BATCH, weights)[0]]))
    assert all(size == draws and law == pytest.approx(shares) for size, law in asked)


@pytest.mark.parametrize("draws", [1, 2])
def test_a_step_of_drawn_exits_is_on_average_one_of_all_exits(draws):
    """The same identity for what training minimises: one scalar, whatever is drawn."""
    model, weights = deep("gpt2", 3), exits_losses.depth_weights((2, 3, 4), 4, 1.0)
    batch, sampled = Batch(*BATCH), exits_losses.SortedLoss(model, weights, draws=draws)
    mean, value = [np.zeros(parameter.shape, np.float64) for parameter in model.parameters()], 0.0
    for drawn in product(weights, repeat=draws):
        sampled.generator = SimpleNamespace(choice=lambda *args, drawn=drawn, **options: list(drawn))
        likely = np.prod([weights[exit] for exit in drawn])
        loss, terms = sampled(batch)
        value += likely * terms["drawn exits"]
        for total, gradient in zip(mean, gradients(model, [loss]), strict=True):
            total += likely * gradient
    whole, _ = exits_losses.SortedLoss(model, weights)(batch)
    assert value == pytest.approx(whole.item(), rel=1e-5)
    assert_gradients(mean, gradients(model, [whole]))
    biased = exits_losses.SortedLoss(model, exits_losses.equal_weights((2, 3, 4)))(batch)[0]  # it would be seen
    with pytest.raises(AssertionError):
        assert_gradients(mean, gradients(model, [biased]))


def test_sampled_losses_draw_by_weight_and_run_no_deeper_than_drawn():
    model, depths = deep("gpt2", 3), []

    class Watched(type(model)):
        def forward(self, *args: Any, exits: Any, **options: Any) -> Any:
            depths.append(max(exits))
            return super().forward(*args, exits=exits, **options)

    model.__class__ = Watched
    small = (BATCH[0][:1, :2], BATCH[1][:1, :2])
    list(exits_losses.sampled_losses(model, small, {1: 1.0, 2: 3.0, 4: 0.0}, 200, np.random.default_rng(0)))
    assert 30 < depths.count(1) < 70
    assert depths.count(1) + depths.count(2) == 200


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_inner_exits_learn_from_the_last_which_learns_nothing_from_them(device, share):
    model = deep("gpt2", 4)
    weights = {1: 0.5, 3: 1.0, 4: 2.0}
    loss, terms = exits_losses.exit_loss(model, BATCH, weights, distillation=share)
    last = host(model(BATCH[0]).logits)
    counted = BATCH[1] != -100
    expected = 2.0 * reference(model, 4)
    for exit in (1, 3):
        early = host(model(BATCH[0], exit=exit).logits)
        pairs = [(law(last[place]), law(early[place])) for place in zip(*np.nonzero(counted), strict=True)]
        kl = sum(float((p * np.log(p / q)).sum()) for p, q in pairs) / len(pairs)
        assert terms[f"exit {exit} KL"] == pytest.approx(kl, rel=1e-4)
        expected += weights[exit] * (share * kl + (1 - share) * reference(model, exit))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert (f"exit {1}" in terms) == (share < 1.0)
    gradients(model, [exits_losses.exit_loss(model, BATCH, {1: 1.0, 3: 1.0, 4: 0.0}, distillation=1.0)[0]])
    assert all(parameter.grad is None for parameter in model.blocks[3].parameters())  # its targets stand still
    assert model.blocks[2].mlp.up.weight.grad is not None


@pytest.mark.parametrize("pull", [0.0, 0.5, 1.0])
def test_it_is_all_the_same_how_many_positions_the_head_reads_at_once(device, monkeypatch, pull):
    model, found = deep("llama", 5), []
    for at_once in (256, 5, 1):
        monkeypatch.setattr(exits_losses, "POSITIONS_AT_ONCE", at_once)
        loss, terms = exits_losses.exit_loss(model, BATCH, {1: 0.5, 3: 1.0, 4: 2.0}, pull)
        found.append((loss.item(), terms, gradients(model, [loss * 0.5])))
    for value, terms, grads in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-5)
        assert terms == pytest.approx(found[0][1], rel=1e-4) and list(terms) == list(found[0][1])
        assert_gradients(grads, found[0][2])


def test_targets_of_which_none_counts_make_a_loss_of_nothing():
    model = deep("gpt2", 4)
    loss, _ = exits_losses.exit_loss(model, (BATCH[0], np.full_like(BATCH[1], -100)), {1: 1.0, 4: 1.0})
    assert loss.item() == 0.0 and not any(gradient.any() for gradient in gradients(model, [loss]))


@pytest.mark.parametrize("head", ["masked_lm", "sequence"])
def test_an_encoders_exits_have_losses_too(tmp_path, head):
    config = with_class(head, num_hidden_layers=3)
    model = tk.load(write_folder(tmp_path, config, bert_tensors(config)))
    ids_BT, mask_BT = np.array([[3, 1, 4], [12, 0, 5]]), np.array([[1, 1, 0], [1, 1, 1]])
    targets = np.array([[-100, 5, -100], [1, -100, 2]]) if head == "masked_lm" else np.array([1, 3])
    loss, _ = exits_losses.exit_loss(model, (ids_BT, targets, mask_BT), {1: 1.0, 3: 1.0}, distillation=0.5)
    apart = [exits_losses.exit_loss(model, (ids_BT, targets, mask_BT), {exit: 1.0})[1] for exit in (1, 3)]
    assert loss.item() > 0.5 * apart[0]["exit 1"] + apart[1]["exit 3"]
    loss.backward()
    assert model.head.parameters()[0].grad is not None


def test_depth_weights_are_layerskips():
    raw = {1: 0.0, 2: 0.1, 3: 0.3, 4: 0.6, 5: 4 + 0.1 * 6}  # blocks 5: l = 0..4
    for chosen in ((1, 2, 3, 4, 5), (2, 4), (3, 5)):
        whole = sum(raw[exit] for exit in chosen)
        assert exits_losses.depth_weights(chosen, 5, 0.1) == pytest.approx({exit: raw[exit] / whole for exit in chosen})


def test_rotation_takes_each_inner_exit_once_a_period_and_the_last_always():
    weights = exits_losses.equal_weights((1, 2, 3, 4, 5, 6, 7))
    for period in (1, 2, 3, 7):
        steps = [exits_losses.rotated(weights, step, period) for step in range(period)]
        for exit in range(1, 7):
            assert sum(exit in step for step in steps) == 1
        for step in steps:
            assert 7 in step
            assert sum(step.values()) == pytest.approx(1.0)
        assert exits_losses.rotated(weights, period + 1, period) == exits_losses.rotated(weights, 1, period)
    assert exits_losses.rotated({1: 1.0, 2: 2.0, 4: 3.0}, 1, 3) == pytest.approx({2: 0.4, 4: 0.6})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: exits_losses.exit_loss(model, BATCH, {}), r"exit weights: .*found {}"),
        (lambda model: exits_losses.exit_loss(model, BATCH, {1: 0.0}), r"not all 0, found {1: 0.0}"),
        (lambda model: exits_losses.exit_loss(model, BATCH, {1: 1.0, 2: -1.0}), r"exit weights: .*-1.0"),
        (lambda model: exits_losses.exit_loss(model, BATCH, {5: 1.0}), r"exits: .*1\.\.4, found 5"),
        (lambda model: exits_losses.exit_loss(model, BATCH, {4: 1.0}, 1.5), r"distillation: .*found 1.5"),
        (lambda model: exits_losses.depth_weights((1,), 4, 0.1), r"not all 0"),
    ],
)
def test_weights_that_make_no_loss_are_refused(call, message):
    with pytest.raises(TinykronError, match=message):
        call(deep("gpt2", 0))


def test_old_names_still_work_and_say_the_new_ones():
    for old, new in (("calibrate", promises.promise), ("Calibration", promises.Promised)):
        said = f"tinykron.exits.{old} is called tinykron.exits.{new.__name__} now"
        with pytest.warns(DeprecationWarning, match=said):
            assert getattr(tk.exits, old) is new
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tk.exits.nothing
