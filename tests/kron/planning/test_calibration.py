"""What matrices see of a text: second moments of inputs, counts of looked-up rows, for all three families."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_close, host
from tests.tiny_training import tiny_gpt2
from tinykron import kron, nn
from tinykron.backend import to_device
from tinykron.errors import DataError, TinykronError
from tinykron.kron.planning import calibration
from tinykron.models.bert import Bert, BertConfig
from tinykron.models.llama import Llama, LlamaConfig
from tinykron.models.transformer import ACTIVATIONS
from tinykron.tensor import no_grad

VOCABULARY = 13
BATCHES = [np.random.default_rng(i).integers(0, VOCABULARY, (2, 6)) for i in range(3)]


def model_of(family: str) -> Any:
    generator = np.random.default_rng(0)
    if family == "gpt2":
        return tiny_gpt2(spread=10.0).eval()
    if family == "llama":
        config = LlamaConfig(VOCABULARY, 8, 12, 2, 4, 2, tie_word_embeddings=False)
        return Llama(config, generator).eval()
    return Bert(BertConfig(VOCABULARY, 8, 2, 2, 12, 10, head="masked_lm"), generator).eval()


def moment(rows: np.ndarray) -> np.ndarray:
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    return rows.T @ rows


@given(seed=st.integers(0, 2**32 - 1), width=st.sampled_from([1, 5, 7]), strip=st.sampled_from([1, 3, 256]))
def test_a_moment_is_the_mean_of_outer_products(device: str, seed: int, width: int, strip: int) -> None:
    generator = np.random.default_rng(seed)
    blocks = [generator.standard_normal((2, rows, width)).astype(np.float32) for rows in (1, 4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "STRIP", strip)
        found = calibration.SecondMoment(width)
        for block in blocks:
            found.add(to_device(block))
        mean = found.mean()
    assert_close(mean, sum(map(moment, blocks)) / 10, rtol=1e-5, atol=1e-6)
    assert found.rows == 10 and host(mean).dtype == np.float64


@pytest.mark.parametrize("width", [256, 300, 1000])
def test_a_moment_takes_the_memory_that_it_says(width: int) -> None:
    found = calibration.SecondMoment(width)
    x = np.ones((1, width), np.float32)
    tracemalloc.start()
    found.add(x)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    said = calibration.SecondMoment.bytes(width)
    assert held == pytest.approx(said, rel=0.01)
    assert said < 8 * width * (width + 260) / 2 or width == 256


@given(seed=st.integers(0, 2**32 - 1))
def test_a_finished_moment_is_half_as_large_and_as_exact_as_its_inputs(device: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-14)):
        found = calibration.SecondMoment(5)
        found.add(to_device(generator.standard_normal((40, 5)).astype(dtype)))
        before = host(found.mean())
        found.finish()
        assert all(strip.dtype == dtype for strip in found._strips)
        assert host(found.mean()).dtype == np.float64
        assert np.abs(host(found.mean()) - before).max() <= tolerance * np.abs(before).max()


def test_what_a_model_saw_is_kept_finished() -> None:
    found = kron.calibrate(model_of("gpt2"), BATCHES)
    assert all(strip.dtype == np.float32 for moment in found.moments.values() for strip in moment._strips)


def test_a_moment_without_inputs_is_refused() -> None:
    with pytest.raises(DataError, match="no inputs were seen"):
        calibration.SecondMoment(3).mean()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_every_matrix_sees_what_the_model_computes(device: str, family: str) -> None:
    model = model_of(family).to(device)
    said: list[str] = []
    found = kron.calibrate(model, BATCHES, say=said.append)
    rows = sum(ids.size for ids in BATCHES)
    assert found.tokens == rows
    expected: dict[str, list[np.ndarray]] = {}
    with no_grad():
        for ids in BATCHES:
            out = model(ids)
            block, x = model.blocks[0], out.hidden[0]
            inputs = x if family == "bert" else block.norm_1(x)
            arrays = {"blocks.0.attention.query": inputs, "blocks.0.attention.value": inputs}
            mixed = block.attention(inputs, None)[0] if family != "llama" else None
            if mixed is not None:
                middle = block.norm_1(x + mixed) if family == "bert" else x + mixed
                up_inputs = middle if family == "bert" else block.norm_2(middle)
                arrays["blocks.0.mlp.up"] = up_inputs
                arrays["blocks.0.mlp.down"] = ACTIVATIONS[block.mlp.activation](block.mlp.up(up_inputs))
            if family == "bert":
                dense = model.head.dense(out.hidden[-1])
                arrays["head.dense"] = out.hidden[-1]
                arrays["embedding"] = model.head.norm(ACTIVATIONS[model.head.activation](dense))
            else:
                arrays["embedding" if family == "gpt2" else "head"] = out.hidden[-1]
            for name, array in arrays.items():
                expected.setdefault(name, []).append(host(array))
    for name, arrays in expected.items():
        assert_close(found.covariance(name), sum(map(moment, arrays)) / rows, rtol=1e-4, atol=1e-5)
    counts = np.bincount(np.concatenate([ids.ravel() for ids in BATCHES]), minlength=VOCABULARY)
    assert_close(found.frequencies("embedding"), counts + 1.0)
    linears = {name for name, module in model.modules() if isinstance(module, nn.Linear)}
    assert linears <= found.moments.keys() | {"pooler"}
    assert said == [f"calibration: {found.bytes / 1e6:,.1f} MB of second moments of {len(found.moments)} matrices"]


def test_matrices_that_share_their_inputs_share_a_moment() -> None:
    found = kron.calibrate(model_of("gpt2"), BATCHES)
    query, key, value, output = (
        found.moments[f"blocks.1.attention.{part}"] for part in ("query", "key", "value", "output")
    )
    assert query is key is value and output is not query
    assert query.rows == sum(ids.size for ids in BATCHES)  # added once
    assert found.moments["blocks.0.attention.query"] is not query


def test_the_model_is_left_as_it_was(device: str) -> None:
    model = model_of("gpt2").train().to(device)
    before = {name: host(array).copy() for name, array in model.state_dict().items()}
    kron.calibrate(model, BATCHES)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(
        isinstance(module, nn.Linear | nn.Embedding)
        for _, module in model.modules()
        if hasattr(module, "weight") and host(module.weight.data).ndim == 2
    )
    for name, array in model.state_dict().items():
        assert_close(array, before[name], rtol=0.0, atol=0.0)


def test_only_named_matrices_are_watched() -> None:
    found = kron.calibrate(model_of("gpt2"), BATCHES, names=["blocks.0.mlp.up", "embedding"])
    assert set(found.moments) == {"blocks.0.mlp.up", "embedding"} and set(found.counts) == {"embedding"}
    assert found.covariance("blocks.0.mlp.down") is None and found.frequencies("positions") is None


def test_an_empty_text_and_inputs_that_are_not_finite() -> None:
    model = model_of("gpt2")
    for batches in ([], [np.zeros((0, 5), int)]):
        with pytest.raises(DataError, match="calibration: found no tokens, expected a text to read"):
            kron.calibrate(model, batches)
    model.blocks[1].norm_1.weight.data[2] = np.inf
    with (
        np.errstate(invalid="ignore", over="ignore"),
        pytest.raises(
            TinykronError, match=r"calibration: the inputs of blocks\.1\.attention\.query hold NaN or infinite values"
        ),
    ):
        kron.calibrate(model, BATCHES)
