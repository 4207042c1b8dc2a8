"""Decoding by fewer blocks, and with drafts: against decoding written plainly, a full pass for every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.decode.test_partial_pass import counting
from tests.decoders import deep, greedy, greedy_by_confidence, tiny_gpt2, trained
from tinykron import kron
from tinykron.decode.generate import Trace
from tinykron.errors import TinykronError
from tinykron.nn import Linear

FAMILIES = ["gpt2", "llama"]
PROMPTS = [[5, 9, 1, 30, 12, 8], [7], [3, 3, 39]]


def new_tokens(ids_BS: np.ndarray, count: int) -> list[list[int]]:
    return ids_BS[:, -count:].tolist()


# A fixed exit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("exit", [1, 3])
def test_an_exit_decodes_as_the_model_of_its_blocks(device, family, exit):
    model, trace = deep(family, 1), Trace()
    found = tk.generate(model, PROMPTS, 8, exit=exit, trace=trace)
    assert new_tokens(found, 8) == [greedy(model, prompt, 8, exit)[-8:] for prompt in PROMPTS]
    assert trace.depths.tolist() == [[exit] * 8] * 3
    assert trace.steps == (6 + 7) * exit
    assert new_tokens(tk.generate(model, PROMPTS, 8), 8) != new_tokens(found, 8)


# Confidence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("skipped", ["recompute", "copy"])
@pytest.mark.parametrize("thresholds", [{1: 0.15, 3: 0.12}, {2: 0.15}, {3: 0.9, 1: 0.9}, {1: 0.0}, {}])
def test_a_token_leaves_at_the_first_exit_that_is_sure(family, skipped, thresholds):
    assert_leaves_in_time(family, skipped, thresholds)


@pytest.mark.parametrize("skipped", ["recompute", "copy"])
def test_leaving_works_on_every_device(device, skipped):
    assert_leaves_in_time("llama", skipped, {3: 0.12, 1: 0.15})


def assert_leaves_in_time(family: str, skipped: str, thresholds: dict[int, float]) -> None:
    model, trace = deep(family, 2), Trace()
    found = tk.generate(model, PROMPTS, 8, confidence=thresholds, skipped=skipped, trace=trace)
    for row, prompt in enumerate(PROMPTS):
        ids, depths = greedy_by_confidence(model, prompt, 8, thresholds, copied=skipped == "copy")
        assert new_tokens(found, 8)[row] == ids[-8:]
        assert trace.depths[row].tolist() == depths


def test_the_cases_above_leave_at_every_depth_and_the_two_ways_differ():
    depths, texts = set(), {}
    for skipped in ("recompute", "copy"):
        for family in FAMILIES:
            trace = Trace()
            options = {"confidence": {1: 0.15, 3: 0.12}, "skipped": skipped, "trace": trace}
            texts[skipped, family] = tk.generate(deep(family, 2), PROMPTS, 24, **options).tolist()
            depths |= set(np.unique(trace.depths).tolist())
    assert depths == {1, 3, 4}
    assert texts["recompute", "gpt2"] != texts["copy", "gpt2"]


@pytest.mark.parametrize("skipped", ["recompute", "copy"])
def test_confident_rows_do_not_depend_on_their_neighbours(skipped):
    model = deep("llama", 3)
    options: dict[str, Any] = {"confidence": {1: 0.15, 2: 0.13}, "skipped": skipped}
    for temperature in (0.0, 0.8):
        first = tk.generate(model, [PROMPTS[0], PROMPTS[2]], 12, temperature, **options)
        second = tk.generate(model, [PROMPTS[1], PROMPTS[2]], 12, temperature, **options)
        assert new_tokens(first, 12)[1] == new_tokens(second, 12)[1]


def test_each_way_saves_the_work_that_it_says():
    work = {}
    for skipped in ("recompute", "copy"):
        model, trace = deep("gpt2", 2), Trace()
        seen = counting(model)
        tk.generate(model, [1, 2, 3], 20, confidence={1: 0.0}, skipped=skipped, trace=trace)
        work[skipped] = seen
        assert trace.steps == sum(seen)
    assert work["recompute"] == [22, 0, 0, 0]  # nothing ever goes deeper
    assert work["copy"] == [22, 2, 2, 2]  # what comes before the last token of the prompt does


def test_an_exit_is_the_deepest_that_confidence_goes():
    model, trace = deep("gpt2", 4), Trace()
    found = tk.generate(model, [1, 2], 12, exit=3, confidence={1: 0.15}, trace=trace)
    model.blocks = model.blocks[:3]
    assert found.tolist() == [greedy_by_confidence(model, [1, 2], 12, {1: 0.15})[0]]
    assert set(trace.depths.ravel().tolist()) == {1, 3}


# Drafts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "length"), [("gpt2", 1), ("gpt2", None), ("llama", 3), ("llama", None)])
def test_an_exit_drafts_and_greedy_text_stays_the_same(device, family, length):
    model, trace = deep(family, 5), Trace()
    found = tk.generate(model, PROMPTS, 12, draft=2, draft_length=length, trace=trace)
    assert new_tokens(found, 12) == [greedy(model, prompt, 12)[-12:] for prompt in PROMPTS]
    assert (trace.depths == 4).all()
    assert (trace.accepted <= trace.drafted).all()
    assert 0 < trace.accepted.sum() < trace.drafted.sum()


def test_the_check_runs_only_the_blocks_above_the_exit():
    for draft_length in (2, None):
        model, trace = deep("gpt2", 6), Trace()
        seen = counting(model)
        tk.generate(model, [1, 2, 3], 16, draft=1, draft_length=draft_length, trace=trace)
        assert seen == [3 - 1 + trace.rounds + trace.drafted[0]] * 4  # the prompt, then a token and drafts a round
        assert trace.steps == sum(seen)


def test_good_drafts_take_fewer_rounds():
    model, trace = deep("gpt2", 7), Trace()
    for block in model.blocks[2:]:
        for linear in (block.attention.output, block.mlp.down):
            linear.weight.data[:] = 0.0  # the exit says what the model says
    tk.generate(model, [1, 2], 29, draft=2, draft_length=4, trace=trace)
    assert (trace.rounds, trace.accepted.tolist(), trace.drafted.tolist()) == (6, [23], [23])
    tk.generate(model, [1, 2], 29, draft=2, trace=trace)
    assert trace.rounds == 4  # 4, 6, 8 drafts, and the rest


def test_another_model_drafts(device):
    model, trace = deep("llama", 8), Trace()
    expected = [greedy(model, prompt, 10)[-10:] for prompt in PROMPTS]
    for draft in (tiny_gpt2(1).eval(), model):
        found = tk.generate(model, PROMPTS, 10, draft=draft, trace=trace)
        assert new_tokens(found, 10) == expected
        assert trace.draft_steps % len(draft.blocks) == 0
        assert trace.draft_steps > 0
    assert (trace.accepted == trace.drafted).all()  # the model is its own best draft


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compressed_model_drafts_for_its_parent(family):
    model, trace = deep(family, 9), Trace()
    draft = kron.factorise(model, kron.kngpt2_plan(model))
    found = tk.generate(model, PROMPTS, 12, draft=draft, trace=trace)
    assert new_tokens(found, 12) == [greedy(model, prompt, 12)[-12:] for prompt in PROMPTS]
    assert trace.accepted.sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [3, None])
def test_drafts_that_leave_where_sure_change_nothing(family, length):
    """S2D: an exit of the model, and a model beside it, draft by as many blocks as they need."""
    assert_drafts_change_nothing(family, length)


def test_drafts_that_leave_where_sure_work_on_every_device(device):
    assert_drafts_change_nothing("llama", None)


def assert_drafts_change_nothing(family: str, length: int | None) -> None:
    model, expected = deep(family, 9), [greedy(deep(family, 9), prompt, 12)[-12:] for prompt in PROMPTS]
    for draft, thresholds in ((3, {1: 0.15, 2: 0.12}), (deep(family, 9), {1: 0.15, 3: 0.12}), (3, {1: 0.0})):
        trace = Trace()
        found = tk.generate(model, PROMPTS, 12, draft=draft, draft_length=length, confidence=thresholds, trace=trace)
        assert new_tokens(found, 12) == expected
        assert (trace.depths == 4).all()
        assert sum(trace.draft_depths.values()) == trace.drafted.sum()
        assert set(trace.draft_depths) <= {*thresholds, 3 if draft == 3 else 4}
        assert trace.accepted.sum() > 0
        alone = tk.generate(model, PROMPTS[0], 12, draft=draft, draft_length=length, confidence=thresholds)
        assert new_tokens(alone, 12) == expected[:1]


def test_the_cases_above_draft_at_every_depth():
    depths = set()
    for family in FAMILIES:
        trace = Trace()
        tk.generate(deep(family, 9), PROMPTS, 12, draft=3, confidence={1: 0.15, 2: 0.12}, trace=trace)
        depths |= set(trace.draft_depths)
    assert depths == {1, 2, 3}


def test_drafts_that_leave_early_save_work():
    """A draft that always leaves after its first block never runs the others: for one row, what waits is not needed."""
    model, draft = deep("gpt2", 9), deep("gpt2", 9)
    seen = counting(draft)
    trace = Trace()
    tk.generate(model, [1, 2, 3], 16, draft=draft, draft_length=3, confidence={1: 0.0}, trace=trace)
    assert seen[0] > 16 and seen[1:] == [0, 0, 0]
    assert trace.draft_steps == sum(seen)
    assert trace.draft_depths == {1: trace.drafted[0]}
    again = counting(model)
    tk.generate(model, [1, 2, 3], 16, draft=3, draft_length=3, confidence={1: 0.0}, trace=trace)
    assert again == [3 - 1 + trace.rounds + trace.drafted[0]] * 4  # the check brings every draft up, once


@pytest.mark.parametrize("draft", [3, "another"])
def test_sampled_rows_with_early_drafts_do_not_depend_on_their_neighbours(draft):
    model = deep("llama", 11)
    drafter = deep("llama", 3) if draft == "another" else draft
    options: dict[str, Any] = {"draft": drafter, "draft_length": 3, "temperature": 0.9, "seed": 3, "top_k": 20}
    options["confidence"] = {1: 0.15, 2: 0.13}
    first = tk.generate(model, [PROMPTS[0], PROMPTS[2]], 20, **options)
    second = tk.generate(model, [PROMPTS[1], PROMPTS[2]], 20, **options)
    assert new_tokens(first, 20)[1] == new_tokens(second, 20)[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_whose_exit_drafts_for_another_exit(family):
    model = deep(family, 10)
    found = tk.generate(model, PROMPTS, 12, exit=3, draft=1)
    assert new_tokens(found, 12) == [greedy(model, prompt, 12, 3)[-12:] for prompt in PROMPTS]


def test_angles_that_depend_on_the_length_are_those_of_plain_decoding():
    """Scaled "dynamic", a key beyond the first context keeps the angle of the length at which it came."""
    rope = {"max_position_embeddings": 12, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    for seed in range(3):
        model, trace = deep("llama", seed, **rope), Trace()
        plain = tk.generate(model, [1, 2, 3], 20)
        for options in ({"draft": 2}, {"draft": deep("llama", seed)}, {"confidence": {1: 1.0}}):
            assert tk.generate(model, [1, 2, 3], 20, trace=trace, **options).tolist() == plain.tolist()
    assert model.context == 24


@pytest.mark.parametrize("length", [3, None])
def test_a_drafted_row_does_not_depend_on_its_neighbours(length):
    model = deep("llama", 11)
    options: dict[str, Any] = {"draft": 1, "draft_length": length, "temperature": 0.9, "seed": 3, "top_k": 20}
    first = tk.generate(model, [PROMPTS[0], PROMPTS[2]], 20, **options)
    second = tk.generate(model, [PROMPTS[1], PROMPTS[2], PROMPTS[1]], 20, **options)
    assert new_tokens(first, 20)[1] == new_tokens(second, 20)[1]
    assert new_tokens(second, 20)[0] != new_tokens(second, 20)[2]  # one prompt twice: two streams


def test_a_stop_token_within_a_draft_ends_the_row():
    model = deep("gpt2", 12)
    plain = tk.generate(model, PROMPTS, 20)
    stop = int(plain[1, 12])
    trace = Trace()
    assert tk.generate(model, PROMPTS, 20, draft=2, stop=stop, trace=trace).tolist() == (
        tk.generate(model, PROMPTS, 20, stop=stop).tolist()
    )
    ends = [row.tolist().index(stop) + 1 if stop in row else row.size for row in plain[:, 6:]]
    assert [int((row > 0).sum()) for row in trace.depths] == [min(end, max(ends)) for end in ends]


def test_a_prompt_that_fills_the_context_and_one_token_to_go(device):
    model = deep("gpt2", 13)
    full = [1] * model.context
    for options in ({"draft": 1}, {"confidence": {1: 0.5}}, {"exit": 2}):
        assert tk.generate(model, full, None, **options).tolist() == [full]
        assert tk.generate(model, full[1:], 1, **options).shape == (1, model.context)
    found = tk.generate(model, [full[:20], [2]], 12, draft=2)
    assert new_tokens(found, 12) == [greedy(model, prompt, 12)[-12:] for prompt in (full[:20], [2])]


def test_drafting_streams_each_token():
    model = deep("gpt2", 14, vocabulary=2048)
    model.tokenizer = trained("gpt2-tiny").tokenizer
    pieces: list[str] = []
    ids = tk.generate(model, [5, 6], 20, draft=2, stream=pieces.append)[0]
    assert len(pieces) > 1
    assert "".join(pieces) == model.tokenizer.decode(ids[2:].tolist())


def test_dropout_is_off_in_both_models():
    model, other = deep("gpt2", 15).train(), tiny_gpt2(1)
    expected = [greedy(deep("gpt2", 15), [1, 2], 10)]
    assert tk.generate(model, [1, 2], 10, draft=other).tolist() == expected
    assert model.training and other.training


def test_damaged_weights_are_found_in_drafts_too():
    model = deep("gpt2", 16)
    model.norm.weight.data[:] = np.nan
    for options in ({"draft": 1}, {"draft": tiny_gpt2(0)}, {"confidence": {1: 0.5}}):
        with pytest.raises(TinykronError, match="not finite"):
            tk.generate(model, [1, 2], 6, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exits"), [("gpt2-tiny", (4, 6)), ("llama-tiny", (4, 6)), ("stories260K", (3,)), ("stories15M", (4,))]
)
def test_greedy_drafting_changes_no_token_of_200_texts(name, exits):
    model = trained(name)
    prompts_BT = np.random.default_rng(0).integers(3, model.config.vocab_size, (200, 4))
    plain = tk.generate(model, prompts_BT, 64, stop=())
    for exit in exits:
        trace = Trace()
        found = np.concatenate(
            [tk.generate(model, part, 64, draft=exit, stop=(), trace=trace) for part in np.split(prompts_BT, 10)]
        )
        assert (found == plain).all()
        assert trace.accepted.sum() > 0


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exit": 0}, r"exit: .*1\.\.4, found 0"),
        ({"exit": 5}, r"exit: .*1\.\.4, found 5"),
        ({"confidence": {4: 0.5}}, r"confidence: .*1\.\.3, found 4"),
        ({"exit": 2, "confidence": {2: 0.5}}, r"confidence: .*1\.\.1, found 2"),
        ({"confidence": {2: 1.5}}, r"confidence: .*exit 2, found 1.5"),
        ({"confidence": {2: "high"}}, r"confidence: .*found 'high'"),
        ({"confidence": {2: float("nan")}}, r"confidence: .*found nan"),
        ({"confidence": {2: 0.5}, "skipped": "guess"}, r"skipped: found 'guess', expected one of recompute, copy"),
        ({"skipped": "copy"}, r'skipped: "copy" .*none are given'),
        ({"draft": 4}, r"draft: .*1\.\.3, found 4"),
        ({"draft": 2.0}, r"draft: .*found 2.0"),
        ({"exit": 2, "draft": 2}, r"draft: .*1\.\.1, found 2"),
        ({"draft": 2, "draft_length": 0}, r"draft_length: .*>= 1, found 0"),
        ({"draft_length": 3}, r"draft_length: found 3 and no draft"),
        ({"draft": 2, "confidence": {2: 0.5}}, r"confidence: .*1\.\.1, found 2"),
        ({"draft": 1, "confidence": {1: 0.5}}, r"confidence: exit 1 has no exit below it"),
        ({"draft": tiny_gpt2(0), "confidence": {2: 0.5}}, r"confidence: .*1\.\.1, found 2"),
        ({"draft": 2, "confidence": {1: 0.5}, "skipped": "copy"}, r'skipped: "copy" is for texts without a draft'),
        ({"draft": Linear(2, 2)}, r"draft: a Linear is no causal"),
        ({"draft": tiny_gpt2(0, vocabulary=41)}, r"draft: it knows 41 tokens, the model 40"),
        ({"exit": 1, "draft": 1}, r"draft: exit 1 has no exit below it"),
        ({"exit": 1, "confidence": {1: 0.5}}, r"confidence: exit 1 has no exit below it"),
    ],
)
def test_an_argument_out_of_range_is_named(options, message):
    with pytest.raises(TinykronError, match=message):
        tk.generate(deep("gpt2", 0), [1, 2], 5, **options)


def test_a_draft_needs_the_context_of_the_text():
    draft = tiny_gpt2(0, n_positions=10)
    assert tk.generate(deep("gpt2", 0), [1, 2], 8, draft=draft).shape == (1, 10)
    with pytest.raises(TinykronError, match="draft: 11 tokens are more than its context of 10"):
        tk.generate(deep("gpt2", 0), [1, 2], 9, draft=draft)
