"""Fewer terms of Kronecker sums: what runs inside a model, and what is cut out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.decoders import deep, greedy
from tests.helpers import assert_close, host
from tests.nested_models import FAMILIES, IDS, nested
from tinykron import kron
from tinykron.errors import CheckpointError, TinykronError
from tinykron.fused import cross_entropy
from tinykron.gradcheck import gradcheck
from tinykron.kron import nested as nested_module
from tinykron.kron.linear import KronModule, Prefix
from tinykron.models.exit_parts import add_parts


def truncated(model: Any, terms: int) -> Any:
    """The same model with the terms behind the first so many set to zero, by plain assignment."""
    other = kron.cut(model)
    for layer in nested_module.kron_layers(other):
        layer.a_RMN.data[terms:] = 0.0
    return other


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_first_terms_are_the_truncated_sum(device, family, terms):
    model = nested(family)
    ours, theirs = host(model(IDS, terms=terms).logits), host(truncated(model, terms)(IDS).logits)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert np.array_equal(ours, host(model(IDS).logits)) == (terms == 4)
    served = model(IDS, exits=(1, 3), terms=terms).exits
    for exit in (1, 3):
        np.testing.assert_array_equal(host(served[exit]), host(model(IDS, exit=exit, terms=terms).logits))


def test_a_layer_uses_its_first_terms_and_no_copy_of_them(device):
    model = nested("gpt2")
    view = kron.first_terms(model, 2)
    assert [view.embedding.terms, view.blocks[0].mlp.up.terms, view.blocks[0].attention.query.terms] == [2, 2, 2]
    layer, whole = view.blocks[1].mlp.up, model.blocks[1].mlp.up
    assert layer.a_RMN is whole.a_RMN and layer.bias is whole.bias and whole.used == (None, None, None)
    if device == "cpu":
        assert all(
            np.shares_memory(own, one.data)
            for own, one in zip(vars(layer.factors).values(), (whole.a_RMN, whole.b_RPQ), strict=False)
        )
        assert np.shares_memory(layer._in_use()[0].data, whole.a_RMN.data)  # the first terms lie side by side
    dense = whole.factors.a[:2], whole.factors.b[:2]
    assert_close(host(layer.to_dense().weight), host(kron.KronSum(*dense).dense().T), rtol=1e-4)
    assert kron.plan_of(view)["blocks.1.mlp.up"].terms == 2
    assert kron.first_terms(view, 1).blocks[0].mlp.up.terms == 1


def test_a_tied_table_has_as_many_terms_in_both_places():
    model = nested("gpt2")
    view = kron.first_terms(model, 1)
    assert view.head is None and view.embedding.terms == 1
    model.head = model.embedding
    both = kron.first_terms(model, 3)
    assert both.head is both.embedding and both.head.terms == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_terms_in_use_alone(device, family):
    model = nested(family)
    cross_entropy(model(IDS[:, :-1], exit=2, terms=1).logits, IDS[:, 1:]).backward()
    query = model.blocks[1].attention.query
    for factor in (query.a_RMN, query.b_RPQ, model.embedding.a_RMN):
        gradient = host(factor.grad)
        assert gradient.shape == factor.shape and np.abs(gradient[0]).max() > 0.0 and not gradient[1:].any()
    assert all(parameter.grad is None for parameter in model.blocks[2].parameters())
    part = kron.cut(model, exit=2, terms=1)
    cross_entropy(part(IDS[:, :-1]).logits, IDS[:, 1:]).backward()
    np.testing.assert_array_equal(host(query.a_RMN.grad)[:1], host(part.blocks[1].attention.query.a_RMN.grad))


def test_a_prefix_and_its_gradient(device):
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    for counts in ((2,), (None, 3), (2, None, 1), (None, None, None)):
        gradcheck(lambda x, counts=counts: Prefix(*counts)(x), x)
        found = host(Prefix(*counts)(tk.Tensor(x)))
        np.testing.assert_array_equal(found, x[tuple(slice(count) for count in counts)])
        assert found.flags.c_contiguous


POINTS = [
    (1, 1, None),
    (2, 3, 1.0),
    (3, 2, 0.5),
    (2, None, 0.25),
    (None, 1, 0.5),
    (3, 4, None),
    (None, None, 0.5),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("exit", "terms", "width"), POINTS)
def test_a_cut_model_gives_the_bits_that_it_gave_inside(tmp_path, family, exit, terms, width):
    model = nested(family)
    tk.save(model, tmp_path / "whole")
    whole = tk.load(tmp_path / "whole")
    part = kron.cut(whole, exit, terms, width)
    tk.save(part, tmp_path / "part")
    loaded = tk.load(tmp_path / "part")
    inside = host(whole(IDS, exit=exit, terms=terms, width=width).logits)
    for other in (part, loaded, kron.cut(model, exit, terms, width)):
        np.testing.assert_array_equal(host(other(IDS).logits), inside)
    np.testing.assert_array_equal(host(model(IDS, exit=exit, terms=terms, width=width).logits), inside)
    assert len(loaded.blocks) == (exit or 3) and part.parameter_count() == loaded.parameter_count()
    assert nested_module.size(nested_module.part(whole, exit, terms, width)) == part.parameter_count()
    assert loaded.blocks[0].mlp.up.factors.shape[0] == (width or 1.0) * whole.blocks[0].mlp.up.factors.shape[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_units_are_those_of_the_dense_matrices(device, family):
    model = nested(family)
    other = kron.merge(model)
    for block in other.blocks:  # the other units get no way out
        units = block.mlp.down.weight.shape[0]
        block.mlp.down.weight.data[units // 2 :] = 0.0
    assert_close(host(model(IDS, width=0.5).logits), host(other(IDS).logits), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(host(model(IDS, width=1.0).logits), host(model(IDS).logits))
    cross_entropy(model(IDS[:, :-1], width=0.5).logits, IDS[:, 1:]).backward()
    up, down = model.blocks[1].mlp.up, model.blocks[1].mlp.down
    rows, columns = up.a_RMN.shape[1] // 2, down.a_RMN.shape[2] // 2
    for inside, outside in (
        (up.a_RMN.grad[:, :rows], up.a_RMN.grad[:, rows:]),
        (down.a_RMN.grad[..., :columns], down.a_RMN.grad[..., columns:]),
    ):
        assert host(inside).any() and not host(outside).any()
    if up.bias is not None:
        assert not host(up.bias.grad)[len(up.bias) // 2 :].any()


@pytest.mark.parametrize("width", [0, 1.5, True, "1", float("nan")])
def test_widths_out_of_range_are_refused(width):
    with pytest.raises(TinykronError, match="width: expected a share above 0 and at most 1"):
        kron.first_units(nested("gpt2"), width)


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(TinykronError, match=r"width: 0.3 of the 32 rows of A in blocks.0.mlp.up is no whole number"):
        nested("gpt2")(IDS, width=0.3)
    with pytest.raises(TinykronError, match=r"width: blocks.0.mlp.up is dense"):
        deep("gpt2", 0)(IDS, width=0.5)
    with pytest.raises(TinykronError, match=r"blocks.0.mlp.gate is dense"):
        deep("llama", 0)(IDS, width=0.5)


def test_a_cut_model_shares_nothing():
    model = nested("llama")
    before = host(model(IDS, exit=2, terms=2).logits)
    part = kron.cut(model, 2, 2)
    for parameter in part.parameters():
        parameter.data[...] = 0.0
    np.testing.assert_array_equal(host(model(IDS, exit=2, terms=2).logits), before)
    assert all(layer.used == (None, None, None) for layer in nested_module.kron_layers(part))
    assert part.blocks[0].mlp.up.energy is None and kron.cut(model).blocks[0].mlp.up.energy is not None


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoding_with_fewer_terms_is_decoding_with_the_cut_model(family):
    model = nested(family)
    part = kron.cut(model, 2, 2)
    prompt = [5, 7, 11]
    narrow = tk.generate(model, prompt, 8, exit=2, terms=2, width=0.5)
    assert narrow[0].tolist() == greedy(kron.cut(model, 2, 2, 0.5), prompt, 8)
    expected = greedy(part, prompt, 8)
    assert tk.generate(model, prompt, 8, exit=2, terms=2)[0].tolist() == expected
    assert tk.generate(model, prompt, 8, draft=1, exit=2, terms=2)[0].tolist() == expected
    assert tk.generate(model, prompt, 8, confidence={1: 1.0}, exit=2, terms=2)[0].tolist() == expected
    full = tk.generate(model, prompt, 8)
    np.testing.assert_array_equal(tk.generate(model, prompt, 8, draft=kron.first_terms(model, 1)), full)
    assert full[0].tolist() != expected


@pytest.mark.parametrize("terms", [0, 5, True, 2.0, "2"])
def test_terms_out_of_range_are_refused(terms):
    for call in (lambda: nested("gpt2")(IDS, terms=terms), lambda: kron.cut(nested("bert"), 1, terms)):
        with pytest.raises(TinykronError, match=r"terms: expected a number in 1\.\.4, found"):
            call()


def test_what_cannot_be_is_refused(tmp_path: Path):
    with pytest.raises(TinykronError, match="GPT2 has no Kronecker sums; kron.factorise makes them"):
        deep("gpt2", 0)(IDS, terms=1)
    with pytest.raises(TinykronError, match=r"exit: expected a number of blocks in 1\.\.3, found 4"):
        kron.cut(nested("gpt2"), 4)
    with pytest.raises(CheckpointError, match="kron.cut makes it its own"):
        tk.save(kron.first_terms(nested("gpt2"), 1), tmp_path / "view")
    assert not list(tmp_path.iterdir())
    assert kron.cut(deep("gpt2", 0), 2).config.n_layer == 2  # no terms asked for: any model will do


def test_the_mode_is_that_of_the_whole():
    model = nested("gpt2").train()
    assert all(module.training for _, module in kron.first_terms(model, 1).modules())
    view = kron.first_terms(model.eval(), 1)
    assert not any(module.training for _, module in view.modules() if isinstance(module, KronModule))


def test_the_trained_exits_of_a_part_are_those_that_it_has(tmp_path: Path):
    model = nested("gpt2")
    model.exits = (1, 2, 3)
    part = kron.cut(model, 2, 1)
    tk.save(part, tmp_path / "part")
    assert tk.load(tmp_path / "part").exits == (1, 2) and kron.cut(model, terms=1).exits == (1, 2, 3)


@pytest.mark.parametrize("kind", ["heads", "blocks"])
def test_an_exit_with_a_part_of_its_own_has_terms_and_widths_too(kind):
    model = add_parts(nested("gpt2"), kind, [1, 2])
    for parameter in model.exit_parts[1].parameters():
        parameter.data *= 0.5
    inside = host(model(IDS, exit=2, terms=1).logits)
    np.testing.assert_array_equal(host(kron.cut(model, 2, 1)(IDS).logits), inside)
    assert np.abs(inside - host(model(IDS, exit=2).logits)).max() > 1e-3
