"""A pass in parts equals a pass at once, whatever waits where, and no block sees a position twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinykron as tk
from tests.decoders import deep
from tests.helpers import assert_close, host
from tinykron.decode.partial_pass import PartialPass

LAYERS = 4


def counting(model: Any) -> list[int]:
    """Let the blocks of a model count the positions that they see."""
    seen = [0] * len(model.blocks)
    for number, block in enumerate(model.blocks):

        class Counted(type(block)):  # type: ignore[misc]
            number: int

            def forward(self, x_BTD: Any, *args: Any) -> Any:
                seen[self.number] += x_BTD.shape[1]
                return super().forward(x_BTD, *args)

        block.__class__, block.number = Counted, number
    return seen


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 9))
def test_logits_at_any_depth_are_those_of_one_pass(device, family, data, seed):
    model = deep(family, seed)
    ids_BT = np.random.default_rng(seed).integers(0, 40, (2, 12))
    padding = data.draw(st.integers(0, 2))
    with tk.no_grad():
        run, done, seen = PartialPass(model, np.array([12 - padding, 12]), 12), 0, counting(model)
        whole = [model(ids_BT[:1, padding:], exits=(1, 2, 3, 4)), model(ids_BT[1:], exits=(1, 2, 3, 4))]
        seen[:] = [0] * LAYERS
        while done < 12:
            count = data.draw(st.integers(1, 12 - done))
            run.feed(ids_BT[:, done : done + count])
            done += count
            for depth in data.draw(st.lists(st.integers(1, LAYERS), max_size=4, unique=True).map(sorted)):
                found_B1V = run.logits(depth)
                for row, out in enumerate(whole):
                    place = done - 1 - (padding if row == 0 else 0)
                    if place >= 0:
                        assert_close(found_B1V[row, 0], host(out.exits[depth])[0, place], rtol=0, atol=2e-4)
        if run.waiting:
            run.logits(LAYERS)
    assert seen == [12] * LAYERS
    assert run.steps == 12 * LAYERS
    assert not run.waiting


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kept", [(5, 8, 6), (3, 3, 3), (7, 4, 8), (2, 8, 8)])
def test_rows_go_on_after_some_of_their_tokens_were_dropped(device, family, kept):
    """`kept` counts the token that follows what is kept, which is yet to be fed."""
    model = deep(family, 1)
    rows = np.random.default_rng(2).integers(0, 40, (3, 12))
    starts = np.array([3, 2, 0])  # rows of unequal length, on the right of 8 slots
    with tk.no_grad():
        run = PartialPass(model, 8 - starts, 14)
        fed = np.zeros((3, 8), np.int64)
        for row, start in enumerate(starts):
            fed[row, start:] = rows[row, : 8 - start]
        run.feed(fed)
        run.logits(LAYERS)
        lengths = np.minimum(kept, 8 - starts + 1)
        run.realign(lengths)
        assert run.length == lengths.max() - 1
        again = np.array([rows[row, length - 1 : length + 1] for row, length in enumerate(lengths)])
        run.feed(again)
        found = run.logits(LAYERS, 2)
        for row, length in enumerate(lengths):
            expected = host(model(rows[row : row + 1, : length + 1]).logits)[0, -2:]
            assert_close(found[row], expected, rtol=0, atol=2e-4)


def test_what_one_row_lacks_is_fed_again_to_all(device):
    model = deep("gpt2", 3)
    rows = np.random.default_rng(3).integers(0, 40, (2, 9))
    with tk.no_grad():
        run = PartialPass(model, np.array([4, 4]), 12)
        run.feed(rows[:, :4])
        run.logits(LAYERS)
        run.realign(np.array([6, 5]))  # of the first row, its fifth token was not fed either
        assert (run.length, run.start_B.tolist()) == (4, [0, 1])
        run.feed(np.stack([rows[0, 4:6], rows[1, 3:5]]))
        found = run.logits(LAYERS)
        for row, length in enumerate((6, 5)):
            assert_close(found[row, 0], host(model(rows[row : row + 1, :length]).logits)[0, -1], rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@settings(max_examples=8)
@given(data=st.data())
def test_what_waits_goes_on_waiting_when_later_tokens_are_dropped(device, family, data):
    model = deep(family, 5)
    ids = np.random.default_rng(5).integers(0, 40, 16)
    with tk.no_grad():
        seen, run, known = counting(model), PartialPass(model, np.array([6]), 16), 6
        run.feed(ids[None, :6])
        run.logits(data.draw(st.integers(1, LAYERS)))
        for _ in range(3):
            drafts = np.random.default_rng(known).integers(0, 40, 3)  # of another text
            for token in drafts:
                run.feed(np.array([[token]]))
                run.logits(data.draw(st.integers(1, LAYERS)))
            run.realign(np.array([known + 1]))  # all are refused; one more token, to be fed
            assert run.length == known
            assert sum(group.x_BTD.shape[1] for group in run.waiting) <= known
            run.feed(ids[None, known : known + 1])
            known += 1
            depth = data.draw(st.integers(1, LAYERS))
            assert_close(
                run.logits(depth)[0, -1], host(model(ids[None, :known], exit=depth).logits)[0, -1], rtol=0, atol=2e-4
            )
        assert seen == sorted(seen, reverse=True)  # no block sees what the one below it has not seen


@pytest.mark.parametrize("kept", [(8, 6, 7), (9, 9, 9), (5, 9, 6)])
def test_what_waits_goes_up_before_rows_move(device, kept):
    model = deep("llama", 6)
    rows = np.random.default_rng(6).integers(0, 40, (3, 12))
    with tk.no_grad():
        run = PartialPass(model, np.array([5, 5, 5]), 14)
        run.feed(rows[:, :5])
        run.logits(3)
        for place in range(5, 8):
            run.feed(rows[:, place : place + 1])
            run.logits(1 + place % 2)
        run.realign(np.array(kept))
        again = np.array([rows[row, run.length - run.start_B[row] : length] for row, length in enumerate(kept)])
        run.feed(again)
        found = run.logits(LAYERS)
        for row, length in enumerate(kept):
            expected = host(model(rows[row : row + 1, :length]).logits)[0, -1]
            assert_close(found[row, 0], expected, rtol=0, atol=2e-4)
