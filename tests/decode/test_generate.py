"""Decoding: the cache changes nothing, padding changes nothing, sampling follows its law, text streams as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import tinykron as tk
from tests.decoders import CONTEXT, full_logits, greedy, tiny_gpt2
from tests.helpers import assert_close, host
from tinykron.decode.rows import TextStream
from tinykron.errors import DataError, ShapeError, TinykronError
from tinykron.models.gpt2 import GPT2
from tinykron.nn import Linear

# The cache ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "heads", "prompt"), [(1, 1, 1), (2, 4, 7), (3, 2, 12)])
def test_cached_logits_equal_the_full_pass_at_every_step(device, layers, heads, prompt):
    model = tiny_gpt2(layers, n_layer=layers, n_head=heads).eval()
    ids_BT = np.random.default_rng(prompt).integers(0, 40, (2, 20))
    with tk.no_grad():
        full_BTV = host(model(ids_BT).logits)
        cache = model.cache(20)
        assert_close(model(ids_BT[:, :prompt], cache=cache).logits, full_BTV[:, :prompt], rtol=0, atol=1e-5)
        for place in range(prompt, 20):
            step_B1V = model(ids_BT[:, place : place + 1], cache=cache, last_only=True).logits
            assert_close(step_B1V, full_BTV[:, place : place + 1], rtol=0, atol=1e-5)
            assert cache.length == place + 1


def test_the_last_position_alone_gives_the_same_logits(device):
    model = tiny_gpt2(0).eval()
    ids_BT = np.random.default_rng(1).integers(0, 40, (3, 9))
    with tk.no_grad():
        full, last = model(ids_BT).logits, model(ids_BT, last_only=True).logits
    assert_close(last, host(full)[:, -1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_equals_full_passes(device, seed):
    model = tiny_gpt2(seed).eval()
    prompt = np.random.default_rng(seed).integers(0, 40, 1 + 3 * seed).tolist()
    found = tk.generate(model, prompt, max_new_tokens=12)
    assert type(found) is np.ndarray
    assert found.dtype == np.int64
    assert found.tolist() == [greedy(model, prompt, 12)]


def test_only_the_last_position_meets_the_head():
    class Watched(GPT2):
        def forward(self, ids_BT: Any, *args: Any, **options: Any) -> Any:
            out = super().forward(ids_BT, *args, **options)
            sizes.append((np.shape(ids_BT), out.logits.shape))
            return out

    sizes: list[Any] = []
    model = Watched(tiny_gpt2(0).config, np.random.default_rng(0))
    tk.generate(model, [[1, 2, 3, 4], [5]], 3)
    assert sizes == [((2, 4), (2, 1, 40)), ((2, 1), (2, 1, 40)), ((2, 1), (2, 1, 40))]


# Batches --------------------------------------------------------------------------------------------------------------

PROMPTS = [[5, 9, 1, 30, 12, 8], [7], [3, 3, 39]]


def test_padded_rows_equal_each_row_alone(device):
    model = tiny_gpt2(3).eval()
    found = tk.generate(model, PROMPTS, max_new_tokens=10)
    assert found.shape == (3, 16)
    for row, prompt in zip(found, PROMPTS, strict=True):
        padding = 6 - len(prompt)
        assert row[:padding].tolist() == [0] * padding
        assert row[padding:].tolist() == greedy(model, prompt, 10)


def test_padded_logits_equal_each_row_alone(device):
    model = tiny_gpt2(3).eval()
    mask_BT = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    ids_BT = np.array([[0, 0, 4, 7], [1, 2, 3, 4]])
    positions_BT = np.array([[0, 0, 0, 1], [0, 1, 2, 3]])
    with tk.no_grad():
        logits = host(model(ids_BT, mask_BT, positions_BT=positions_BT, last_only=True).logits)[:, -1]
    assert_close(logits[0], full_logits(model, [4, 7]), rtol=0, atol=1e-5)
    assert_close(logits[1], full_logits(model, [1, 2, 3, 4]), rtol=0, atol=1e-5)


def test_a_mask_equals_lists_of_unequal_length(device):
    model = tiny_gpt2(4).eval()
    ids_BT = np.array([[31, 31, 31, 7], [3, 3, 39, 1]])  # what lies under the padding does not count
    mask_BT = np.array([[0, 0, 0, 1], [1, 1, 1, 1]])
    with_mask = tk.generate(model, ids_BT, max_new_tokens=8, mask=mask_BT)
    with_lists = tk.generate(model, [[7], [3, 3, 39, 1]], max_new_tokens=8)
    assert with_mask[:, :4].tolist() == ids_BT.tolist()
    assert with_mask[:, 4:].tolist() == with_lists[:, 4:].tolist()


def test_a_sampled_row_does_not_depend_on_its_neighbours():
    model = tiny_gpt2(5).eval()
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    first = tk.generate(model, [PROMPTS[0], PROMPTS[2]], **options)
    second = tk.generate(model, [PROMPTS[1], PROMPTS[2], PROMPTS[1]], **options)
    assert first[1, -12:].tolist() == second[1, -12:].tolist()
    assert second[0, -12:].tolist() != second[2, -12:].tolist()  # one prompt twice: two streams


def test_arrays_and_lists_are_one(device):
    model = tiny_gpt2(6).eval()
    expected = tk.generate(model, [4, 5, 6], max_new_tokens=5).tolist()
    on_device = tk.Tensor(np.array([4, 5, 6])).data
    for ids in (np.array([4, 5, 6], np.int32), np.array([[4, 5, 6]]), [[4, 5, 6]], (4, 5, 6), on_device):
        assert tk.generate(model, ids, max_new_tokens=5).tolist() == expected


# Stopping -------------------------------------------------------------------------------------------------------------


def test_a_stop_token_ends_the_text():
    model = tiny_gpt2(9).eval()
    whole = tk.generate(model, [1, 2], 20, temperature=1.0)[0].tolist()
    stop = whole[9]
    end = whole.index(stop, 2) + 1
    for given_stop in (stop, [stop], (39 if stop != 39 else 38, stop), np.int64(stop)):
        found = tk.generate(model, [1, 2], 20, temperature=1.0, stop=given_stop)[0].tolist()
        assert found[:end] == whole[:end]
        assert len(found) <= end
    assert found[-1] == stop or found[-1] in (38, 39)
    assert tk.generate(model, [1, 2, stop], 3, stop=stop).shape[1] > 3  # one in the prompt does not count


def test_a_row_that_ended_repeats_its_stop_token_until_all_have():
    model = tiny_gpt2(10).eval()
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 1}
    free = tk.generate(model, PROMPTS, **options)
    stop = int(free[1, 8])
    stopped = tk.generate(model, PROMPTS, stop=stop, **options)
    ends = [row[6:].tolist().index(stop) + 7 if stop in row[6:] else 26 for row in free]
    assert ends[1] < 26
    assert stopped.shape[1] == max(ends)
    for before, after, end, prompt in zip(free, stopped, ends, PROMPTS, strict=True):
        padding = 6 - len(prompt)
        assert after[:padding].tolist() == [stop] * padding
        assert after[padding:end].tolist() == before[padding:end].tolist()
        assert (after[end:] == stop).all()


@pytest.mark.parametrize("as_list", [False, True])
def test_the_configuration_names_the_stop_token(as_list):
    free = tk.generate(tiny_gpt2(11).eval(), [1], 20)[0].tolist()
    eos = free[5]
    model = tiny_gpt2(11, extra={"eos_token_id": [eos, 50256] if as_list else eos}).eval()
    found = tk.generate(model, [1], 20)[0].tolist()
    assert found == free[: free.index(eos, 1) + 1]
    assert tk.generate(model, [1], 20, stop=())[0].tolist() == free


# The model's mode and the context -------------------------------------------------------------------------------------


def test_generation_switches_dropout_off_and_every_module_back():
    model = tiny_gpt2(12)
    model.blocks[1].eval()
    before = [module.training for _, module in model.modules()]
    assert tk.generate(model, [1, 2], 6).tolist() == [greedy(tiny_gpt2(12).eval(), [1, 2], 6)]
    assert [module.training for _, module in model.modules()] == before
    model.norm.weight.data[:] = np.nan
    with pytest.raises(TinykronError, match="not finite"):
        tk.generate(model, [1, 2], 6)
    assert [module.training for _, module in model.modules()] == before


def test_no_tape_is_left():
    model = tiny_gpt2(12)
    tk.generate(model, [1, 2], 3)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (model.eval()([[1]]).logits + 0.0).requires_grad  # recording goes on outside


def test_the_context_can_be_filled():
    model = tiny_gpt2(13).eval()
    assert tk.generate(model, [1, 2], None).shape == (1, CONTEXT)
    assert tk.generate(model, [1, 2], CONTEXT - 2).tolist() == tk.generate(model, [1, 2], None).tolist()
    assert tk.generate(model, [1] * CONTEXT, None).tolist() == [[1] * CONTEXT]


# Streaming ------------------------------------------------------------------------------------------------------------

TEXT = "naïve — 日本語 and 🙂👩‍🚀, ça va? "


def byte_tokenizer() -> Tokenizer:
    """A byte-level BPE trained on ASCII alone: every other character takes a token for each of its bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator(["naive, and va? " * 2], trainer)
    return tokenizer


TOKENIZER = byte_tokenizer()


def test_pieces_are_whole_characters():
    ids = TOKENIZER.encode(TEXT * 2).ids
    assert len(ids) > len(TEXT * 2)
    stream = TextStream(TOKENIZER)
    pieces = [stream.put(token) for token in ids]
    assert "".join(pieces) == TEXT * 2
    assert "" in pieces  # a character's first bytes were held back
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.end() == ""


@given(ids=st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=30))
def test_pieces_join_to_the_text_of_any_tokens(ids):
    stream = TextStream(TOKENIZER)
    assert "".join([*map(stream.put, ids), stream.end()]) == TOKENIZER.decode(ids)


def test_an_unfinished_character_appears_at_the_end():
    first = TOKENIZER.token_to_id("ð")  # the byte F0, which begins a character of four bytes
    stream = TextStream(TOKENIZER)
    assert [stream.put(first), stream.end()] == ["", "\ufffd"]


def test_generate_streams_the_new_text():
    model = tiny_gpt2(14, vocabulary=TOKENIZER.get_vocab_size())
    model.tokenizer = TOKENIZER
    prompt = TOKENIZER.encode("ça").ids
    pieces: list[str] = []
    ids = tk.generate(model, prompt, 24, temperature=1.0, stream=pieces.append)[0]
    assert len(pieces) > 1
    assert "" not in pieces
    assert "".join(pieces) == TOKENIZER.decode(ids[len(prompt) :].tolist())


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ids": []}, ShapeError, r"ids: the prompt in row 0 is empty"),
        ({"ids": [[1], []]}, ShapeError, r"ids: the prompt in row 1 is empty"),
        ({"ids": np.zeros((0, 3), int)}, ShapeError, r"ids: no prompt"),
        ({"ids": np.zeros((1, 1, 3), int)}, ShapeError, r"ids: .*found shape \(1, 1, 3\)"),
        ({"ids": [[[1]]]}, ShapeError, r"ids: row 0 .*found shape \(1, 1\)"),
        ({"ids": "text"}, TinykronError, r"ids: .*model.tokenizer.encode"),
        ({"ids": [[1, 2], [3, 40]]}, DataError, r"ids: in row 1, token id 40 at \(1,\) is outside 0\.\.39"),
        ({"ids": [1, -1]}, DataError, r"ids: .*-1 at \(1,\)"),
        ({"ids": [1.5]}, DataError, r"ids: .*whole numbers, found float64"),
        ({"ids": [1] * 33}, TinykronError, r"ids: a prompt of 33 tokens .*context of 32"),
        ({"max_new_tokens": 31}, TinykronError, r"max_new_tokens: 2 .*\+ 31 .*of 32; ask for at most 30"),
        ({"max_new_tokens": 0}, TinykronError, r"max_new_tokens: .*>= 1, found 0"),
        ({"max_new_tokens": 2.0}, TinykronError, r"max_new_tokens: .*found 2.0"),
        ({"temperature": -0.5}, TinykronError, r"temperature: .*found -0.5"),
        ({"temperature": float("nan")}, TinykronError, r"temperature: .*found nan"),
        ({"top_k": 0}, TinykronError, r"top_k: .*>= 1, found 0"),
        ({"top_p": 0.0}, TinykronError, r"top_p: .*found 0.0"),
        ({"top_p": 1.1}, TinykronError, r"top_p: .*found 1.1"),
        ({"seed": -1}, TinykronError, r"seed: .*>= 0, found -1"),
        ({"stop": 40}, DataError, r"stop: .*0\.\.39, found 40"),
        ({"stop": ["a"]}, TinykronError, r"stop: .*found 'a'"),
        ({"ids": [[1], [1, 2]], "mask": [[1, 1], [1, 1]]}, ShapeError, r"mask: prompts of unequal lengths"),
        ({"mask": [[1, 1, 1]]}, ShapeError, r"mask: .*\(1, 2\), found \(1, 3\)"),
        ({"mask": [[1, 0]]}, ShapeError, r"mask: row 0"),
        ({"ids": [[1, 1, 1]] * 2, "mask": [[0, 1, 1], [1, 0, 1]]}, ShapeError, r"mask: row 1"),
        ({"stream": print}, TinykronError, r"stream: the model has no tokenizer"),
        ({"ids": [[1], [2]], "stream": print}, TinykronError, r"stream: .*found 2"),
    ],
)
def test_an_argument_out_of_range_is_named(options, error, message):
    with pytest.raises(error, match=message):
        tk.generate(tiny_gpt2(0), **{"ids": [1, 2], "max_new_tokens": 5, **options})


def test_only_a_causal_model_generates():
    with pytest.raises(TinykronError, match="a Linear is no causal language model"):
        tk.generate(Linear(2, 2), [1])
