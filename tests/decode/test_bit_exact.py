"""Bit-exact decoding: no bit of a logit depends on how many tokens a pass takes; a machine that cannot is found out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.decode.test_generate_exits import PROMPTS, new_tokens
from tests.decoders import deep, trained
from tests.helpers import assert_close, host
from tinykron import kron
from tinykron.decode.bit_exact import FixedRows, bit_exact
from tinykron.decode.generate import Trace
from tinykron.errors import TinykronError
from tinykron.nn import Linear, Module
from tinykron.tensor import Tensor

LENGTHS = (2, 3, 4, 5, 6, 8)  # of the passes: 120 tokens each make 720 rows


def in_passes(model: Any, ids_BT: np.ndarray, length: int, mask_BT: np.ndarray | None = None) -> np.ndarray:
    """Return the logits (B, T, V) of all positions, `length` of them a pass."""
    total, found = ids_BT.shape[1], []
    places = None if mask_BT is None else np.maximum(mask_BT.cumsum(axis=1) - 1, 0)
    with tk.no_grad():
        cache = model.cache(total)
        for start in range(0, total, length):
            part = slice(start, start + length)
            mask = None if mask_BT is None else mask_BT[:, : part.stop]
            positions = None if places is None else places[:, part]
            found.append(host(model(ids_BT[:, part], mask, positions_BT=positions, cache=cache).logits))
    return np.concatenate(found, axis=1)


def differing(model: Any, ids_BT: np.ndarray, lengths: tuple[int, ...] = LENGTHS) -> int:
    """Count the rows of logits in which any bit changes with the length of the passes."""
    one = in_passes(model, ids_BT, 1)
    return sum(int((in_passes(model, ids_BT, length) != one).any(axis=-1).sum()) for length in lengths)


def assert_exact(model: Any) -> None:
    ids_BT = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, 120))
    exact = bit_exact(model)
    assert differing(exact, ids_BT) == 0
    assert differing(model, ids_BT, (5,)) > 0  # the usual products do depend on it, or the test sees nothing
    assert_close(in_passes(exact, ids_BT, 8), in_passes(model, ids_BT, 8), rtol=0, atol=1e-4)


def test_no_bit_of_720_rows_differs():
    assert_exact(deep("gpt2", 0, layers=2, n_positions=120))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny", "stories260K", "stories15M"])
def test_no_bit_of_720_rows_of_a_trained_model_differs(name):
    assert_exact(trained(name))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_the_same_model(device, family):
    model = deep(family, 1)
    exact = bit_exact(model)
    ids_BT = np.random.default_rng(1).integers(0, 40, (1, 17))
    assert_close(in_passes(exact, ids_BT, 17), in_passes(model, ids_BT, 17), rtol=0, atol=1e-4)
    assert differing(exact, ids_BT, (5,)) == 0
    kept = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in exact.parameters()} == kept
    assert not any(isinstance(module, FixedRows) for _, module in model.modules())
    with tk.no_grad():  # without a cache, for an exit, and through `generate`
        assert_close(exact(ids_BT, exit=2).logits, host(model(ids_BT, exit=2).logits), rtol=0, atol=1e-4)


def test_padding_and_neighbours_change_no_bit(device):
    exact = bit_exact(deep("llama", 2))
    ids_BT = np.random.default_rng(2).integers(0, 40, (2, 18))
    mask_BT = np.ones((2, 18), int)
    mask_BT[0, :5] = 0
    alone = in_passes(exact, ids_BT[:1, 5:], 13)[0], in_passes(exact, ids_BT[1:], 18)[0]
    for length in (5, 18):
        together = in_passes(exact, ids_BT, length, mask_BT)
        assert (together[0, 5:] == alone[0]).all()
        assert (together[1] == alone[1]).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_drafts_of_equal_tokens_cannot_change_the_text(family):
    """Two tokens of one embedding are equally likely: the last bit of a product decides between them."""
    model = deep(family, 3)
    model.embedding.weight.data[20:] = model.embedding.weight.data[:20]
    exact, trace = bit_exact(model), Trace()
    plain = tk.generate(exact, PROMPTS, 12)
    for options in ({"draft": 2, "draft_length": 5}, {"draft": model}):
        assert tk.generate(exact, PROMPTS, 12, trace=trace, **options).tolist() == plain.tolist()
        assert trace.accepted.sum() > 0
    assert new_tokens(tk.generate(exact, PROMPTS[1], 12), 12) == [new_tokens(plain, 12)[1]]


def test_factors_are_exact_one_row_at_a_time():
    model = deep("gpt2", 4)
    small = kron.factorise(model, kron.kngpt2_plan(model))
    ids_BT = np.random.default_rng(4).integers(0, 40, (1, 18))
    assert differing(bit_exact(small, rows=1), ids_BT, (5,)) == 0


# Where it cannot hold -------------------------------------------------------------------------------------------------


class ByPlace(Module):
    """Products whose last bits depend on a row's place, as BLAS libraries have them."""

    def __init__(self, inner: Module, place: int) -> None:
        self.inner, self.place = inner, place

    def forward(self, x_ND: Tensor) -> Tensor:
        nudge_N1 = np.where(np.arange(len(x_ND)) == self.place, np.float32(1 + 2**-22), np.float32(1))[:, None]
        return self.inner(x_ND) * Tensor(nudge_N1)


class ByNeighbour(ByPlace):
    """A row takes something from the one before it."""

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.inner(x_ND + Tensor(np.roll(x_ND.numpy(), 1, axis=0)) * 1e-6)


@pytest.mark.parametrize("broken", [ByPlace, ByNeighbour])
def test_a_machine_on_which_a_rows_place_matters_is_refused(broken):
    for place in range(8):
        model = deep("gpt2", 5)
        model.blocks[1].attention.output = broken(model.blocks[1].attention.output, place)
        with pytest.raises(TinykronError, match=r"blocks\.1\.attention\.output: .*place among 8 rows.*rows=1 holds"):
            bit_exact(model)
    bit_exact(model, rows=1)


@pytest.mark.parametrize("rows", [4, 16])
def test_other_numbers_of_rows_hold_or_are_refused(rows):
    model = deep("gpt2", 6, n_embd=64)
    try:
        exact = bit_exact(model, rows)
    except TinykronError as error:
        assert f"among {rows} rows" in str(error)
    else:
        ids_BT = np.random.default_rng(6).integers(0, 40, (1, 20))
        assert differing(exact, ids_BT, (3, 20)) == 0


def test_what_is_not_decoding_is_refused():
    with pytest.raises(TinykronError, match="bit_exact: a Linear is no causal language model"):
        bit_exact(Linear(2, 2))
    exact = bit_exact(deep("gpt2", 7))
    with pytest.raises(TinykronError, match="keeps no attention scores"):
        exact([[1, 2]], attention_scores=True)
    with pytest.raises(TinykronError, match="RowByRow has no backward"):
        exact([[1, 2]]).logits.sum().backward()
    for rows in (0, 1.5):
        with pytest.raises(TinykronError, match="rows: .*>= 1"):
            bit_exact(deep("gpt2", 7), rows)
