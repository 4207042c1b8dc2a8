"""Modules: names, tied parameters, strict loading, devices; and the layers against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.helpers import assert_close, host
from tests.strategies import AWAY_FROM_ZERO, arrays, shapes
from tinykron import backend, nn
from tinykron.backend import to_device
from tinykron.errors import CheckpointError, DataError, ShapeError, TinykronError
from tinykron.nn import Dropout, Embedding, LayerNorm, Linear, Module, Parameter, RMSNorm
from tinykron.optim import SGD
from tinykron.tensor import Tensor, no_grad

COUNT, WIDTH = 5, 3


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


class Small(Module):
    """Parameters at every kind of place: on the module, in a module, in a list; the head's table may be tied."""

    def __init__(self, tied: bool = True, random: nn.Generator = None) -> None:
        random = random or generator()
        self.table = Embedding(COUNT, WIDTH, random)
        self.blocks = [Linear(WIDTH, WIDTH, generator=random), Dropout(0.5), Linear(WIDTH, WIDTH, False, random)]
        self.head = Embedding(COUNT, WIDTH, random)
        self.scale = nn.constant(1.0, WIDTH)
        self.sizes = [COUNT, WIDTH]
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Any) -> Tensor:
        x = self.table(ids) * self.scale
        for block in self.blocks:
            x = block(x)
        return self.head.project(x)


TIED_NAMES = ["scale", "table.weight", "blocks.0.weight", "blocks.0.bias", "blocks.2.weight"]


def copies(model: Module) -> dict[str, np.ndarray]:
    return {name: host(array).copy() for name, array in model.state_dict().items()}


def assert_same(model: Module, state: dict[str, Any]) -> None:
    found = copies(model)
    assert list(found) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], host(array), err_msg=name)


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_are_the_attributes_and_list_places(device):
    assert list(Small(tied=False).state_dict()) == [*TIED_NAMES, "head.weight"]
    assert [name for name, _ in Small().modules()] == ["", "table", "blocks.0", "blocks.1", "blocks.2", "head"]


def test_a_tied_parameter_is_there_once(device):
    model = Small()
    assert [name for name, _ in model.named_parameters()] == TIED_NAMES
    assert list(model.state_dict()) == TIED_NAMES
    assert len(model.parameters()) == len({id(p) for p in model.parameters()}) == 5
    assert model.parameter_count() == WIDTH + COUNT * WIDTH + WIDTH * WIDTH + WIDTH + WIDTH * WIDTH
    assert Small(tied=False).parameter_count() == model.parameter_count() + COUNT * WIDTH


@given(ids=hnp.arrays(np.int64, shapes(1, 2), elements=st.integers(0, COUNT - 1)), table=arrays((COUNT, WIDTH)))
def test_a_tied_gradient_is_the_sum_of_both_uses_and_stepped_once(device, ids, table):
    tied, untied = (Small(tied).eval() for tied in (True, False))
    for model in (tied, untied):
        for parameter in model.parameters():
            parameter.data = parameter.data.astype(np.float64)
        model.table.weight.data, model.head.weight.data = to_device(table.copy()), to_device(table.copy())
        logits = model(ids)
        (logits * logits).sum().backward()
    assert tied.table.weight is tied.head.weight
    total = host(untied.table.weight.grad) + host(untied.head.weight.grad)
    assert_close(tied.table.weight.grad, total)
    SGD(tied.parameters(), lr=0.5).step()
    assert_close(tied.head.weight, table - 0.5 * total)


def test_get_and_set_by_dotted_name():
    model = Small()
    assert model.get("blocks.0.weight") is model.blocks[0].weight
    assert model.get("table") is model.table
    square, other = Linear(WIDTH, WIDTH, generator=generator()), Embedding(COUNT, WIDTH)
    model.set("blocks.2", square)
    model.set("head", other)
    model.set("blocks.1", holder := Small())
    model.set("blocks.1.table", other)
    assert model.blocks[2] is square
    assert model.head is holder.table is other
    assert "blocks.2.bias" in model.state_dict()


# Loading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_load_copies_and_keeps_the_dtype(device, dtype):
    source, model = Small(), Small(random=np.random.default_rng(1))
    state = {name: to_device(host(array).astype(dtype)) for name, array in source.state_dict().items()}
    kept = copies(source)
    model.load_state_dict(state)
    for array in state.values():
        array += 1.0
    assert_same(model, kept)
    assert {parameter.dtype for parameter in model.parameters()} == {np.dtype(np.float32)}
    assert model.table.weight is model.head.weight


def test_load_from_another_device_and_back(device):
    with backend.device("cpu"):
        source = Small()
    model = Small(random=np.random.default_rng(1))
    model.load_state_dict(source.state_dict())
    assert_same(model, copies(source))
    assert {parameter.device for parameter in model.parameters()} == {device}
    with backend.device("cpu"):
        back = Small(random=np.random.default_rng(2))
    back.load_state_dict(model.state_dict())
    assert_same(back, copies(source))
    assert {parameter.device for parameter in back.parameters()} == {"cpu"}


def test_load_lists_all_that_does_not_fit_and_changes_nothing(device):
    model = Small()
    before = copies(model)
    state = {name: to_device(np.ones(array.shape, np.float32)) for name, array in before.items()}
    del state["scale"], state["blocks.0.weight"]
    state |= {"extra": state["table.weight"], "head.weight": state["table.weight"]}
    state["blocks.0.bias"] = state["blocks.0.bias"][:2]
    state["blocks.2.weight"] = state["blocks.2.weight"].reshape(9, 1)
    with pytest.raises(CheckpointError) as caught:
        model.load_state_dict(state)
    assert str(caught.value).splitlines() == [
        "the tensors do not fit the Small",
        "  missing      scale, blocks.0.weight",
        "  unexpected   extra, head.weight",
        "  wrong shape  blocks.0.bias: found (2,), expected (3,)",
        "  wrong shape  blocks.2.weight: found (9, 1), expected (3, 3)",
    ]
    assert_same(model, before)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda state: state.pop("scale"), "missing"),
        (lambda state: state.update(extra=np.ones(1)), "unexpected"),
        (lambda state: state.update(scale=np.ones((1, WIDTH))), "wrong shape"),
    ],
)
def test_load_names_only_what_is_wrong(change, kind):
    state = dict(Small().state_dict())
    change(state)
    with pytest.raises(CheckpointError) as caught:
        Small().load_state_dict(state)
    kinds = ("missing", "unexpected", "wrong shape")
    assert [word for word in kinds if f"  {word} " in str(caught.value)] == [kind]


# Modes and devices ----------------------------------------------------------------------------------------------------


def test_train_and_eval_reach_everything():
    model = Small()
    outer = Small(tied=False)
    outer.blocks.append(model)
    assert outer.eval() is outer
    assert not any(module.training for _, module in outer.modules())
    model.train()
    assert [name for name, module in outer.modules() if module.training] == [
        name for name, _ in outer.modules() if name.startswith("blocks.3")
    ]
    outer.train()
    assert all(module.training for _, module in outer.modules())


def test_to_moves_all_parameters_and_forgets_gradients(device):
    with backend.device("cpu"):
        model = Small().eval()
        before = copies(model)
        expected = model([[1, 2]])
        expected.sum().backward()
    assert model.to(device) is model
    assert {parameter.device for parameter in model.parameters()} == {device}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert_same(model, before)
    out = model([[1, 2]])
    assert out.device == device
    assert_close(out, host(expected))
    assert {parameter.device for parameter in model.to("cpu").parameters()} == {"cpu"}
    assert_same(model, before)


def test_zero_grad():
    model = Small().eval()
    model([0, 1]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_are_drawn_alike_on_every_device(device):
    here = copies(Small(tied=False))
    with backend.device("cpu"):
        assert_same(Small(tied=False), here)
    weights = host(nn.normal(generator(), 100, 100))
    assert weights.dtype == np.float32
    assert weights.std() == pytest.approx(nn.INITIAL_STD, rel=0.05)
    assert abs(weights.mean()) < 5 * nn.INITIAL_STD / 100


def test_unset_reserves_what_a_generator_would_draw(device):
    unset, drawn = Small(random=nn.Unset()), Small()
    assert {name: (p.shape, p.dtype, p.device, p.requires_grad) for name, p in unset.named_parameters()} == {
        name: (p.shape, p.dtype, p.device, p.requires_grad) for name, p in drawn.named_parameters()
    }
    unset.load_state_dict(drawn.state_dict())
    assert_same(unset, copies(drawn))


def test_a_module_without_forward_says_so():
    with pytest.raises(TinykronError, match="Module defines no forward"):
        Module()(1)


# Layers ---------------------------------------------------------------------------------------------------------------

rows_TD = shapes(1, 3).flatmap(lambda shape: arrays((*shape, WIDTH)))


@given(x=rows_TD, weight=arrays((WIDTH, 2)), bias=arrays((2,)))
def test_linear(device, x, weight, bias):
    layer = Linear(WIDTH, 2)
    assert (layer.weight.shape, layer.bias.shape) == ((WIDTH, 2), (2,))  # (in, out)
    layer.weight.data, layer.bias.data = to_device(weight), to_device(bias)
    assert_close(layer(Tensor(x)), x @ weight + bias)
    layer.bias = None
    assert_close(layer(Tensor(x)), x @ weight)
    assert Linear(WIDTH, 2, bias=False).bias is None


def test_linear_refuses_another_width(device):
    with pytest.raises(ShapeError, match=r"\(2, 4\).*3 inputs"):
        Linear(3, 2)(Tensor(np.ones((2, 4), np.float32)))


@given(ids=hnp.arrays(np.int32, shapes(1, 3), elements=st.integers(0, COUNT - 1)), table=arrays((COUNT, WIDTH)))
def test_embedding_takes_ids_from_anywhere(device, ids, table):
    layer = Embedding(COUNT, WIDTH)
    layer.weight.data = to_device(table)
    for given_ids in (ids, to_device(ids), ids.tolist()):
        rows = layer(given_ids)
        assert rows.device == device
        assert_close(rows, table[ids])
    assert_close(layer.project(Tensor(table[ids])), table[ids] @ table.T)


@given(
    ids=hnp.arrays(np.int64, shapes(1, 3), elements=st.integers(0, COUNT - 1)),
    wrong=st.integers(-(2**40), -1) | st.integers(COUNT, 2**40),
    place=st.integers(0, 2**20),
)
def test_embedding_names_the_first_id_out_of_range_and_its_place(device, ids, wrong, place):
    first = np.unravel_index(place % ids.size, ids.shape)
    ids[first] = wrong
    ids.flat[-1] = COUNT if ids.flat[-1] != wrong else wrong  # a later one is not the one named
    position = tuple(int(i) for i in first)
    for given_ids in (ids, to_device(ids)):
        with pytest.raises(DataError) as caught:
            Embedding(COUNT, WIDTH)(given_ids, "segment")
        assert str(caught.value) == f"segment {wrong} at {position} is outside 0..{COUNT - 1}"


def test_embedding_refuses_ids_that_are_no_whole_numbers(device):
    with pytest.raises(DataError, match="token ids must be whole numbers, found float32"):
        Embedding(COUNT, WIDTH)(np.ones(2, np.float32))


@given(x=rows_TD, weight=arrays((WIDTH,), **AWAY_FROM_ZERO), bias=arrays((WIDTH,)))
def test_norms(device, x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    layer = LayerNorm(WIDTH, eps=0.01)
    layer.weight.data, layer.bias.data = to_device(weight), to_device(bias)
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 0.01) * weight + bias
    assert_close(layer(Tensor(x)), expected)
    root = RMSNorm(WIDTH, eps=0.02)
    root.weight.data = to_device(weight)
    assert_close(root(Tensor(x)), x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 0.02) * weight)


def test_norms_start_neutral(device):
    assert_close(LayerNorm(WIDTH).weight, np.ones(WIDTH, np.float32))
    assert_close(LayerNorm(WIDTH).bias, np.zeros(WIDTH, np.float32))
    assert_close(RMSNorm(WIDTH).weight, np.ones(WIDTH, np.float32))


# Dropout --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(device, rate):
    layer, size = Dropout(rate), 40_000
    nn.seed_dropout(layer, 3)
    out = host(layer(Tensor(np.ones(size, np.float32))))
    assert np.isclose(out, 0.0).sum() + np.isclose(out, 1.0 / (1.0 - rate)).sum() == size
    spread = np.sqrt(rate / (1.0 - rate) / size)  # of the mean of `size` values
    assert abs(out.mean() - 1.0) < 5 * spread


def test_dropout_does_nothing_in_eval_and_at_rate_0():
    x = Tensor(np.ones(3, np.float32))
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert (Dropout(0.5).active, Dropout(0.5).eval().active) == (0.5, 0.0)


def masks(*seed: int) -> list[np.ndarray]:
    """Return two draws of each of two dropouts."""
    model = Module()
    model.layers = [Dropout(0.5), Dropout(0.5)]
    nn.seed_dropout(model, *seed)
    ones = Tensor(np.ones(64, np.float32))
    with no_grad():
        return [host(layer(ones)) for layer in model.layers for _ in range(2)]


def test_dropout_masks_follow_the_seed_on_every_device(device):
    here = masks(1, 2)
    with backend.device("cpu"):
        np.testing.assert_array_equal(here, masks(1, 2))
    assert not np.array_equal(here, masks(1, 3))
    assert len({mask.tobytes() for mask in here}) == 4  # each layer has its own stream, each draw is new


def test_dropout_without_a_generator_says_what_to_call():
    with pytest.raises(TinykronError, match="seed_dropout"):
        Dropout(0.5)(Tensor(np.ones(3, np.float32)))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_dropout_refuses_a_rate_that_is_no_share(rate):
    with pytest.raises(TinykronError, match=r"in \[0, 1\), found"):
        Dropout(rate)


def test_a_parameter_is_a_leaf_that_wants_a_gradient(device):
    parameter = Parameter([1.0, 2.0])
    assert (parameter.device, parameter.dtype, parameter.requires_grad) == (device, np.float32, True)
    (parameter * 3.0).sum().backward()
    assert_close(parameter.grad, np.full(2, 3.0, np.float32))


# Copies ---------------------------------------------------------------------------------------------------------------


def test_a_sharing_copy_has_modules_of_its_own_and_all_else_in_common():
    model = Small()
    model.again = model.blocks[0]  # one module in two places
    copy = nn.sharing_copy(model)
    assert all(mine is theirs for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True))
    assert copy.again is copy.blocks[0] is not model.blocks[0] and copy.blocks is not model.blocks
    copy.eval().blocks[0] = Dropout(0.1)
    assert isinstance(model.blocks[0], Linear) and model.training and model.blocks[1].training


def test_a_sharing_copy_puts_replacements_in_every_place():
    model, new = Small(), Linear(WIDTH, WIDTH)
    model.again = model.blocks[0]
    copy = nn.sharing_copy(model, {model.blocks[0]: new})
    assert copy.again is copy.blocks[0] is new and model.blocks[0] is not new
    assert copy.blocks[2].weight is model.blocks[2].weight
