"""Alpaca's files and template, and batches whose loss is on the answers only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoders import DATA, tiny_gpt2
from tests.tiny_tasks import TOKENIZER, tiny_bert
from tests.train.test_resume import assert_same_bits
from tinykron import data
from tinykron.data import instructions
from tinykron.data.instructions import Example, Examples, encode, parse_instructions, prompt, read_instructions
from tinykron.data.masking import Masking
from tinykron.errors import CheckpointError, DataError, TinykronError
from tinykron.fused import cross_entropy
from tinykron.train.loop import fit
from tinykron.train.settings import Settings

ENTRIES = [
    {"instruction": "Add {2} and 3.", "input": "", "output": "5"},
    {"instruction": "Turn it round.", "input": "abc", "output": "cba"},
    {"instruction": "Say nothing.", "output": ""},
]


def test_the_template_is_alpacas_to_the_letter() -> None:
    assert prompt("Turn it round.", "abc") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nTurn it round.\n\n### Input:\nabc"
        "\n\n### Response:"
    )
    assert prompt("Add {2} and 3.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd {2} and 3.\n\n### Response:"
    )


def test_a_file_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(ENTRIES), encoding="utf-8-sig")
    found = read_instructions(path)
    wanted = [prompt("Add {2} and 3."), prompt("Turn it round.", "abc"), prompt("Say nothing.")]
    assert [example.prompt for example in found] == wanted
    assert [example.answer for example in found] == ["5", "cba", ""]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "a.json: not JSON"),
        ("{}", "a.json: expected a JSON list of instructions, found an object"),
        ("[]", "found an empty list"),
        ('[{"instruction": "x", "output": "y"}, 5]', "a.json: entry 1: expected an object, found a number"),
        ('[{"instruction": "x"}]', 'entry 0: expected a text "output", found none among instruction'),
        ('[{"instruction": "x", "output": null}]', 'entry 0: expected a text "output", found null'),
        ('[{"instruction": "x", "input": [], "output": ""}]', 'expected a text "input", found an empty list'),
        ('[{"instruction": " ", "output": "y"}]', "entry 0: expected an instruction, found an empty text"),
    ],
)
def test_what_is_off_is_named_with_file_and_entry(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError) as error:
        read_instructions(tmp_path / "a.json")
    assert says in str(error.value)


def test_a_file_that_is_none_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    for name in ("none.json", "bytes.json"):
        with pytest.raises(DataError, match=f"{name}: (cannot be read|expected UTF-8 text)"):
            read_instructions(tmp_path / name)


def test_a_published_file() -> None:
    path = DATA / "instructions" / "rasbt-instruction-data.json"
    if not path.exists():
        pytest.skip(f"{path} is not here: it is no part of this repository")
    found = read_instructions(path)
    assert len(found) == 1100 and sum("### Input:" in example.prompt for example in found) > 100
    training, held_out = data.split(found)
    assert 20 < len(held_out) < 110
    assert not {example.prompt for example in training} & {example.prompt for example in held_out}


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [data.Document(str(n), f"{prompt('Turn it round.', 'abc')} {n}") for n in range(50)]
    return data.train_tokenizer(texts, 300)


@given(context=st.integers(1, 200), batch=st.integers(1, 5))
def test_targets_are_the_answer_and_the_end_and_nothing_else(tokenizer: Any, context: int, batch: int) -> None:
    examples = parse_instructions(json.dumps(ENTRIES), "memory")
    prompts = [tokenizer.encode(example.prompt).ids for example in examples]
    fitting = [n for n, ids in enumerate(prompts) if len(ids) <= context]
    if not fitting:
        with pytest.raises(DataError, match="no prompt of 3 leaves room for an answer"):
            encode(tokenizer, examples, context)
        return
    found = encode(tokenizer, examples, context)
    assert found.dropped == 3 - len(fitting)
    rows = np.random.default_rng(batch).integers(0, len(fitting), batch)
    inputs_BT, targets_BT = found.collate(rows)
    for place, row in enumerate(rows):
        before = prompts[fitting[row]]
        answer = [*tokenizer.encode(examples[fitting[row]].answer).ids, tokenizer.token_to_id(data.END_OF_TEXT)]
        whole = [*before, *answer][: context + 1]
        assert inputs_BT[place, : len(whole) - 1].tolist() == whole[:-1]
        counted = np.flatnonzero(targets_BT[place] != data.IGNORED)
        assert counted.tolist() == list(range(len(before) - 1, len(whole) - 1))
        assert targets_BT[place, counted].tolist() == whole[len(before) :]
    assert inputs_BT.shape[1] <= context


def test_batches_go_through_all_examples_in_order() -> None:
    examples = Examples([np.arange(size) for size in (4, 9, 3, 5, 6)], [1, 2, 1, 4, 2])
    found = list(examples.batches(20))
    assert [len(inputs) for inputs, _ in found] == [2, 2, 1]
    targets = np.concatenate([batch[batch != data.IGNORED] for _, batch in found])
    assert targets.tolist() == [1, 2, 3, *range(2, 9), 1, 2, 4, 2, 3, 4, 5]


# Training -------------------------------------------------------------------------------------------------------------

EXAMPLES = Examples([np.array([n, 7, 20 + n, 0]) for n in range(1, 9)], [2] * 8)
SETTINGS = Settings(40, 4, 8, lr=1e-2)


def test_training_on_examples_teaches_the_answers_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    model, stopped = (tiny_gpt2(0, spread=1.0) for _ in range(2))
    fit(model, EXAMPLES, SETTINGS)
    inputs_BT, targets_BT = EXAMPLES.collate(range(8))
    assert cross_entropy(model(inputs_BT).logits, targets_BT).item() < 0.6 * np.log(40)  # of a guess
    step = Examples.sample_batch

    def failing(self: Any, batch: int, generator: Any, left: list[int] = [20]) -> Any:  # noqa: B006  counts calls
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("killed")
        return step(self, batch, generator)

    settings = Settings(40, 4, 8, lr=1e-2, checkpoint_every=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Examples, "sample_batch", failing)
        fit(stopped, EXAMPLES, settings, folder=tmp_path)
    again = tiny_gpt2(5)
    fit(again, EXAMPLES, settings, folder=tmp_path)
    assert_same_bits(again, model)
    other = Examples(EXAMPLES.ids, [1] * 8)
    with pytest.raises(CheckpointError, match="another text"):
        fit(tiny_gpt2(0), other, settings, folder=tmp_path)


def test_a_masked_model_takes_no_examples() -> None:
    with pytest.raises(TinykronError, match="examples: are for causal models"):
        fit(tiny_bert(), EXAMPLES, SETTINGS, masking=Masking.of(TOKENIZER))


def test_an_example_is_held_out_by_its_prompt() -> None:
    training, held_out = data.split([Example(str(n % 50), str(n)) for n in range(200)])
    assert not {one.prompt for one in training} & {one.prompt for one in held_out}
    assert instructions.kind_of(True) == "a boolean"
