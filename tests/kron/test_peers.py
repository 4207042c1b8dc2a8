"""Wrong answers that other libraries ship or shipped: for each a test named after it, in which ours is right."""

from __future__ import annotations

import json
import tracemalloc
from functools import reduce
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tinykron as tk
from tests.checkpoints import IDS, TINY, gpt2_tensors, write_folder
from tests.helpers import assert_close, host
from tests.strategies import non_contiguous
from tinykron import kron, nn
from tinykron.backend import to_device
from tinykron.kron import Kron, KroneckerSum, Sum


def drawn(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape) for shape in shapes]


def positive(size: int) -> np.ndarray:
    root = drawn((size, 2 * size))[0]
    return root @ root.T


# Determinants ---------------------------------------------------------------------------------------------------------


def test_probnum_205_exponents_of_the_determinant(device: str) -> None:
    """det(S x T) = det(S)^q det(T)^p for S (p, p), T (q, q); theirs had p and q the other way round."""
    s, t = drawn((2, 2), (3, 3))
    dense, k = np.linalg.det(np.kron(s, t)), Kron(to_device(s), to_device(t))
    theirs = np.linalg.det(s) ** 2 * np.linalg.det(t) ** 3
    assert k.det() == pytest.approx(dense) and theirs != pytest.approx(dense, rel=0.01)
    assert k.slogdet()[1] == pytest.approx(log(abs(dense)))


def test_cola_0_0_7_sign_of_the_determinant(device: str) -> None:
    """Their LU took every permutation for an even one: the sign was right for half of all matrices."""
    generator, signs = np.random.default_rng(0), set()
    for size in (2, 3, 4, 5):
        for _ in range(8):
            s, t = generator.standard_normal((size, size)), generator.standard_normal((3, 3))
            sign, logarithm = Kron(to_device(s), to_device(t)).slogdet()
            assert (sign, pytest.approx(logarithm)) == np.linalg.slogdet(np.kron(s, t))
            signs.add(sign)
    assert signs == {-1.0, 1.0}
    swap = to_device(np.eye(2)[::-1].copy())  # odd, as a permutation of three pairs is
    assert Kron(swap, to_device(np.eye(3))).slogdet() == Kron(to_device(np.eye(3)), swap).slogdet() == (-1.0, 0.0)
    assert Kron(swap, to_device(np.eye(2))).slogdet() == (1.0, 0.0)


def test_linear_operator_logdet_of_small_and_negative_eigenvalues(device: str) -> None:
    """They clamp eigenvalues at 1e-7: too large a determinant for tiny ones, any number for negative ones."""
    values = np.array([1e-12, 1.0, -2.0])
    s, t = np.diag(values), np.eye(2)
    theirs = 2 * np.log(np.maximum(values, 1e-7)).sum()
    k = Kron(to_device(s), to_device(t))
    for found in (k.slogdet(), k.eigh().slogdet()):
        assert found == (pytest.approx(1.0), pytest.approx(2 * np.log(np.abs(values)).sum()))
        assert theirs != pytest.approx(found[1], rel=0.1)
    assert Kron(to_device(s)).slogdet()[0] == -1.0


def test_gpytorch_1673_quadratic_form_and_determinant_of_a_sum(device: str) -> None:
    """y^T (S x T + cI)^-1 y and the determinant, for a noise c: what a Gaussian process asks for."""
    s, t, (y,) = positive(3), positive(4), drawn((12,))
    dense = np.kron(s, t) + 0.1 * np.eye(12)
    noisy = Kron(to_device(s), to_device(t)).eigh().map(lambda values: values + 0.1)
    form = float((to_device(y) * (noisy.inverse() @ to_device(y))).sum())
    assert form == pytest.approx(y @ np.linalg.solve(dense, y))
    assert noisy.slogdet() == (pytest.approx(1.0), pytest.approx(np.linalg.slogdet(dense)[1]))


# Products and decompositions ------------------------------------------------------------------------------------------


def test_linear_operator_svd_of_a_general_product(device: str) -> None:
    """Theirs took every product for a symmetric one: 74 % off on a square, an exception on a rectangle."""
    for shapes in (((3, 3), (4, 4)), ((2, 5), (4, 3))):
        a, b = drawn(*shapes)
        u, values, v = Kron(to_device(a), to_device(b)).svd()
        assert_close(u @ (values[:, None] * v.dense()), np.kron(a, b), atol=1e-12)
        assert_close((u.T @ u).dense(), np.eye(u.shape[1]), atol=1e-12)
        assert_close((v @ v.T).dense(), np.eye(v.shape[0]), atol=1e-12)
    a, b = drawn((3, 3), (4, 4))
    eigenvalues, vectors = np.linalg.eigh(np.kron(a, b))
    assert np.abs((vectors * eigenvalues) @ vectors.T - np.kron(a, b)).max() > 0.5


def test_gpytorch_427_order_of_three_factors(device: str) -> None:
    """A x B x C, not C x B x A; on equal shapes and symmetric data nothing would show."""
    factors = drawn((2, 3), (4, 1), (3, 5))
    x = drawn((15,))[0]
    dense, reversed_order = reduce(np.kron, factors), reduce(np.kron, factors[::-1])
    found = Kron(*map(to_device, factors)) @ to_device(x)
    assert_close(found, dense @ x, atol=1e-12)
    assert np.abs(host(found) - reversed_order @ x).max() > 0.1


def test_gpytorch_533_batches(device: str) -> None:
    a, b, x = drawn((2, 3), (4, 5), (6, 1, 7, 15))
    expected = np.array([[[np.kron(a, b) @ v for v in rows] for rows in block] for block in x])
    for operator in (Kron(to_device(a), to_device(b)), Sum(Kron(to_device(a), to_device(b)))):
        assert_close(operator.apply(to_device(x)), expected, atol=1e-12)
    s, t, y = drawn((3, 3), (5, 5), (2, 4, 15))
    wide = KroneckerSum(to_device(s), to_device(t))
    assert_close(wide.apply(to_device(y)), y @ host(wide.dense()).T, atol=1e-12)


def test_pytorch_54135_and_74442_factors_that_are_not_contiguous(device: str) -> None:
    """torch.kron stopped with an error, or read other entries, where a factor was a transpose or a slice."""
    a, b, x = drawn((3, 4), (2, 5), (20,))
    expected = np.kron(a, b)
    for one in non_contiguous(to_device(a)):
        for two in [to_device(b), *non_contiguous(to_device(b))]:
            k = Kron(one, two)
            assert_close(k.dense(), expected)
            assert_close(k.T.dense(), expected.T)
            for vector in non_contiguous(to_device(x)):
                assert_close(k @ vector, expected @ x, atol=1e-12)
            assert_close(k.pinv().dense(), np.linalg.pinv(expected), rtol=1e-9, atol=1e-11)


# Layers ---------------------------------------------------------------------------------------------------------------


def dense_layer(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, True, np.random.default_rng(0))


@pytest.mark.parametrize("terms", [1, 2, 12])
def test_peft_lokr_scale_merged_is_forward(device: str, terms: int) -> None:
    """A layer equals its own dense matrix, whatever its number of terms: no scale is applied once, twice or never."""
    dense, x = dense_layer(12, 20), tk.Tensor(np.float32(drawn((5, 12))[0]))
    layer = kron.KronLinear.from_dense(dense, kron.nearest(dense.weight.data.T, (4, 3), terms))
    a, b = (host(array).astype(np.float64) for array in (layer.factors.a, layer.factors.b))
    own = sum(np.kron(one, two) for one, two in zip(a, b, strict=True))
    assert_close(layer(x), np.float32(host(x) @ own.T + host(dense.bias)), atol=1e-5)
    assert_close(layer.to_dense()(x), host(layer(x).data), atol=1e-6)
    assert_close(Sum.of(layer.factors).apply(x.data) + dense.bias.data, host(layer(x).data), atol=1e-6)


def test_peft_lokr_many_terms_do_not_shrink_the_matrix(device: str) -> None:
    """Their alpha / r made a full matrix, which takes a large r, 1e-5 of what was meant."""
    dense = dense_layer(12, 20)
    full = kron.KronLinear.from_dense(dense, kron.nearest(dense.weight.data.T, (4, 3), 12))
    assert_close(full.to_dense().weight, host(dense.weight.data), atol=1e-6)
    assert np.abs(host(full.to_dense().weight.data) / 12 - host(dense.weight.data)).max() > 0.01


PLAN = {
    "embedding": kron.Choice((13, 6), (13, 3)),
    "blocks.0.attention.output": kron.Choice((6, 6), (2, 3), terms=2),
    "blocks.1.mlp.up": kron.Choice((10, 6), (5, 3)),
}


def factorised(folder: Path) -> Any:
    return kron.factorise(tk.load(write_folder(folder, TINY, gpt2_tensors(TINY))), kron.KronPlan(PLAN))


def logits(model: Any) -> np.ndarray:
    with tk.no_grad():
        return model(IDS).logits.numpy()


def test_comfyui_15114_scales_survive_the_file(device: str, tmp_path: Path) -> None:
    """They left alpha out where both factors were stored, and mixed up layers: other logits after loading."""
    model = factorised(tmp_path / "in")
    before = logits(model)
    for scale, name in enumerate(PLAN, 2):  # each layer another scale, on one factor alone
        layer = model.get(name)
        layer.a_RMN.data = layer.a_RMN.data * float(scale)
    scaled = logits(model)
    assert np.abs(scaled - before).max() > 0.01
    tk.save(model, tmp_path / "out")
    assert np.array_equal(logits(tk.load(tmp_path / "out")), scaled)


def test_lycoris_138_sizes_are_told_before_the_work(tmp_path: Path) -> None:
    """ "Bigger factor, fewer parameters?": a plan prints shapes and counts, and they are those of the outcome."""
    plan = kron.KronPlan(PLAN)
    lines = {line.split()[0]: line for line in str(plan).splitlines() if line.strip()}
    model = factorised(tmp_path / "in")
    for name, choice in PLAN.items():
        layer = model.get(name)
        count = layer.a_RMN.size + layer.b_RPQ.size
        (m, n), (p, q) = layer.a_RMN.shape[1:], layer.b_RPQ.shape[1:]
        assert choice.parameters == count
        assert {f"{m}x{n}", f"{p}x{q}", f"{count:,}"} <= set(lines[name].split())
    shrunk = sum(choice.parameters_before - choice.parameters for choice in PLAN.values())
    assert model.parameter_count() == tk.load(tmp_path / "in").parameter_count() - shrunk


def test_animalorastudio_204_no_step_builds_the_matrix() -> None:
    """Users ran out of memory since the product was built at every step, forward and backward."""
    layer = kron.KronLinear(2048, 2048, (256, 256), generator=np.random.default_rng(0))
    x = tk.Tensor(np.ones((4, 2048), np.float32), requires_grad=True)
    tracemalloc.start()
    for _ in range(2):
        (layer(x) * layer(x)).sum().backward()
        for parameter in layer.parameters():
            parameter.data -= 1e-6 * parameter.grad
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2048 * 2048 * 4 / 8


def test_svd_llm_12_a_saved_model_stays_small(device: str, tmp_path: Path) -> None:
    """Theirs was saved with all of its 6.7 billion parameters. The merged one has as many, and the same logits."""
    model = factorised(tmp_path / "in")
    tk.save(model, tmp_path / "small")
    stored = sum(array.size for array in load_file(tmp_path / "small" / "model.safetensors").values())
    assert stored == model.parameter_count() < tk.load(tmp_path / "in").parameter_count()
    loaded = tk.load(tmp_path / "small")
    assert loaded.parameter_count() == model.parameter_count() and kron.plan_of(loaded) == kron.plan_of(model)
    assert np.array_equal(logits(loaded), logits(model))
    tk.save(kron.merge(loaded), tmp_path / "dense")
    assert "tinykron" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert_close(logits(tk.load(tmp_path / "dense")), logits(model), atol=1e-5)
    assert tk.load(tmp_path / "dense").parameter_count() == tk.load(tmp_path / "in").parameter_count()
