"""Exits of the models: the first n blocks, then the model's own final norm and head; one pass serves them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests import bert_checkpoints, checkpoints, llama_checkpoints
from tests.bert_checkpoints import bert_reference, bert_tensors, with_class
from tests.checkpoints import gpt2_logits, gpt2_tensors, write_folder
from tests.helpers import assert_close, host
from tests.llama_checkpoints import llama_logits, llama_tensors
from tests.tiny_tasks import tiny_bert
from tinykron.errors import TinykronError
from tinykron.models.transformer import Decoder
from tinykron.nn import Linear

BLOCKS = 3
GPT2 = checkpoints.TINY | {"n_layer": BLOCKS}
LLAMA = llama_checkpoints.TINY | {"num_hidden_layers": BLOCKS}
UNTIED = llama_checkpoints.UNTIED | {"num_hidden_layers": BLOCKS}


def bert_logits(config: dict, tensors: dict, ids_BT: np.ndarray) -> np.ndarray:
    return bert_reference(config, tensors, ids_BT).logits


FAMILIES: dict[str, tuple[dict, str, Callable[..., Any], Callable[..., Any]]] = {
    "gpt2": (GPT2, "n_layer", gpt2_tensors, gpt2_logits),
    "llama": (LLAMA, "num_hidden_layers", llama_tensors, llama_logits),
    "llama, untied": (UNTIED, "num_hidden_layers", llama_tensors, llama_logits),
    **{
        f"bert, {head}": (with_class(head, num_hidden_layers=BLOCKS), "num_hidden_layers", bert_tensors, bert_logits)
        for head in ("masked_lm", "sequence", "token", "span")
    },
}
IDS = np.array([[3, 1, 4, 1, 5], [12, 0, 5, 5, 8]])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Callable[[int], np.ndarray]]:
    """A model, and the reference's logits of one with its first n blocks only."""
    config, count, make, reference = FAMILIES[request.param]
    tensors = make(config)
    return tk.load(write_folder(tmp_path, config, tensors)), lambda n: reference(config | {count: n}, tensors, IDS)


def blocks_run(model: Any, **options: Any) -> tuple[list[int], Any]:
    """Return which blocks a pass goes through, in order, and what comes out."""
    order = []

    def counted(block: Any, number: int) -> Any:
        class Counted(type(block)):
            def forward(self, *args: Any) -> Any:
                order.append(number)
                return super().forward(*args)

        block.__class__ = Counted
        return block

    model.blocks = [counted(block, number) for number, block in enumerate(model.blocks)]
    return order, model(IDS, **options)


@pytest.mark.parametrize("exit", [1, 2, 3])
def test_an_exit_is_the_model_of_the_first_blocks(device, family, exit):
    model, reference = family
    ran, out = blocks_run(model, exit=exit)
    assert_close(out.logits, reference(exit).astype(np.float32), rtol=0, atol=1e-4)
    assert ran == list(range(exit))
    assert len(out.hidden) == exit + 1
    assert out.exits is None


@pytest.mark.parametrize("exits", [(1, 2, 3), (1, 3), (2, 1), [2]])
def test_one_pass_serves_all_exits(device, family, exits):
    model, _ = family
    ran, out = blocks_run(model, exits=exits)
    assert ran == list(range(max(exits)))
    assert list(out.exits) == sorted(exits)
    for exit, logits in out.exits.items():
        assert_close(logits, host(model(IDS, exit=exit).logits), rtol=0, atol=0)
    assert out.logits is out.exits[max(exits)]


def test_without_an_exit_all_blocks_run(family):
    model, reference = family
    ran, out = blocks_run(model)
    assert ran == [0, 1, 2]
    assert out.exits is None
    assert_close(out.logits, host(model(IDS, exit=3).logits), rtol=0, atol=0)


def test_gradients_of_one_pass_are_those_of_a_pass_for_each_exit(device, family):
    model, _ = family
    weights = {1: 0.5, 2: -1.0, 3: 2.0}

    def gradients(losses: list[Any]) -> list[np.ndarray]:
        model.zero_grad()
        for loss in losses:
            loss.backward()
        return [host(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]

    def loss(exit: int, logits: Any) -> Any:
        return (logits * logits).mean() * weights[exit]

    served = model(IDS, exits=tuple(weights)).exits
    together = gradients([loss(1, served[1]) + loss(2, served[2]) + loss(3, served[3])])
    apart = gradients([loss(exit, model(IDS, exit=exit).logits) for exit in weights])
    for one, other in zip(together, apart, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(other).max())))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_causal_exit_fills_the_cache_of_its_blocks_alone(device, tmp_path, name):
    config, _, make, _ = FAMILIES[name]
    model = tk.load(write_folder(tmp_path, config, make(config)))
    with tk.no_grad():
        whole = model(IDS, exits=(1, 2))
        cache = model.cache(5)
        model(IDS[:, :3], cache=cache, exits=(1, 2))
        last = model(IDS[:, 3:], cache=cache, exits=(1, 2), last_only=True)
    assert [layer.length for layer in cache.layers] == [5, 5, 0]
    for exit in (1, 2):
        assert_close(last.exits[exit], host(whole.exits[exit])[:, -1:], rtol=0, atol=1e-5)
    assert_close(model.read(whole.hidden[1]), host(whole.exits[1]), rtol=0, atol=1e-6)


def test_an_encoder_without_a_head_has_hidden_states_and_no_exits(tmp_path):
    config = with_class(None)
    model = tk.load(write_folder(tmp_path, config, bert_tensors(config)))
    shallow, whole = model(bert_checkpoints.IDS, exit=1), model(bert_checkpoints.IDS)
    assert shallow.logits is None
    assert len(shallow.hidden) == 2
    assert_close(shallow.hidden[1], host(whole.hidden[1]), rtol=0, atol=0)
    expected = np.tanh(host(whole.hidden[1])[:, 0] @ host(model.pooler.weight) + host(model.pooler.bias))
    assert_close(shallow.pooled, expected, rtol=0, atol=1e-6)
    with pytest.raises(TinykronError, match="exits: the encoder has no head"):
        model(bert_checkpoints.IDS, exits=(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exit": 0}, r"exit: .*1\.\.3, found 0"),
        ({"exit": 4}, r"exit: .*1\.\.3, found 4"),
        ({"exit": -1}, r"exit: .*found -1"),
        ({"exit": True}, r"exit: .*found True"),
        ({"exit": 2.0}, r"exit: .*found 2.0"),
        ({"exits": ()}, r"exits: expected one or more"),
        ({"exits": (1, 1)}, r"exits: .*found \(1, 1\)"),
        ({"exits": (1, 4)}, r"exits: .*1\.\.3, found 4"),
        ({"exit": 1, "exits": (1, 2)}, r"exit 1 and exits \(1, 2\)"),
    ],
)
def test_what_is_no_exit_is_refused(family, options, message):
    with pytest.raises(TinykronError, match=message):
        family[0](IDS, **options)


# Inside attention -----------------------------------------------------------------------------------------------------


def test_heads_make_the_scores_and_come_from_the_states(device, family):
    model, _ = family
    out = model(IDS, attention_scores=True, attention_heads=True)
    assert len(out.attention_heads) == BLOCKS
    for block, state, heads, scores in zip(
        model.blocks, out.hidden[:-1], out.attention_heads, out.attention_scores, strict=True
    ):
        q_BHTK, k_BGTK, v_BGTK = (host(one) for one in heads[:3])
        shared = q_BHTK.shape[1] // k_BGTK.shape[1]
        k_BHTK = np.repeat(k_BGTK, shared, axis=1)
        assert_close(scores, q_BHTK @ k_BHTK.swapaxes(-1, -2) / np.float32(np.sqrt(q_BHTK.shape[-1])), rtol=1e-4)
        read = state if not model.causal else block.norm_1(state)
        v_BTD = host(block.attention.value(read))
        assert_close(v_BGTK.swapaxes(1, 2).reshape(v_BTD.shape), v_BTD)
        assert heads.scores is None  # they are handed out once
    assert model(IDS).attention_heads is None


def test_states_are_what_the_head_reads(family: Any) -> None:
    model, _ = family
    out = model(IDS, exits=(1, BLOCKS), read=False)
    assert out.logits is None and list(out.states) == [1, BLOCKS]
    for exit, state in out.states.items():
        assert_close(model.read(state), host(model(IDS, exit=exit).logits))


def test_a_model_says_what_it_can_do(family: Any) -> None:
    model, _ = family
    head = model.config.head
    assert model.causal == isinstance(model, Decoder)
    assert model.writes == (model.causal and head is None)
    assert (model.fills, model.classifies) == (head == "masked_lm", head in ("sequence", "token", "span"))


def test_a_configuration_of_another_size(family: Any) -> None:
    model, _ = family
    changed = model.config.with_blocks(2).with_units(24)
    made = type(model)(changed, np.random.default_rng(0))
    assert len(made.blocks) == 2 and made.blocks[0].mlp.up.weight.shape[1] == 24
    assert changed == model.config.changed(**{changed.BLOCKS: 2, changed.UNITS: 24})


@pytest.mark.parametrize("other", ["an encoder", "no model"])
def test_what_writes_nothing_generates_nothing(other: str) -> None:
    model = tiny_bert() if other == "an encoder" else Linear(4, 4)
    with pytest.raises(TinykronError, match="is no causal language model"):
        tk.generate(model, [1, 2])
