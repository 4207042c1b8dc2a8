"""What a loss in one matrix does to the predictions, against the whole model computed again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import assert_close
from tests.tiny_training import BATCHES, CONTEXT, wide_gpt2
from tinykron import kron, nn
from tinykron.kron.planning import sensitivity
from tinykron.kron.planning.candidates import candidates
from tinykron.kron.planning.factorise import fit_of, matrix
from tinykron.models.bert import Bert, BertConfig
from tinykron.models.llama import Llama, LlamaConfig


def test_estimates_are_corrected_by_what_a_fit_shows() -> None:
    model, seen, checked = wide_gpt2(), kron.calibrate(wide_gpt2(), BATCHES), 0
    for name in ("blocks.0.mlp.down", "blocks.1.mlp.down", "blocks.1.mlp.up", "blocks.0.attention.output"):
        module = model.get(name)
        w, covariance = matrix(module), seen.covariance(name)
        before = candidates(w, covariance)
        found = {name: before}
        sensitivity.measured_sensitivities(model, {name: module}, found, seen, 0.6)
        fits = np.flatnonzero(before.parameters <= 0.6 * w.size)
        tried = fits[before.loss[fits].argmin()]
        if not before.estimated[tried]:
            assert found[name] is before
            continue
        fit = kron.nearest(w, tuple(before.shapes[tried].tolist()), int(before.terms[tried]), covariance, sweeps=2)
        ratio = fit.error**2 / before.loss[tried]
        assert abs(ratio - 1.0) > 0.01
        expected = before.corrected(ratio)
        assert_close(found[name].loss, expected.loss, rtol=1e-6)
        assert np.array_equal(found[name].shapes, expected.shapes)
        checked += 1
    assert checked


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_sensitivity_is_the_divergence_of_the_whole_model_per_loss(device: str, family: str) -> None:
    """Blocks before the matrix are not computed again; here they are."""
    generator = np.random.default_rng(3)
    model: Any = wide_gpt2()
    if family == "llama":
        model = Llama(LlamaConfig(len(model.embedding.weight), 8, 12, 3, 4, 2, tie_word_embeddings=False), generator)
    elif family == "bert":
        model = Bert(BertConfig(len(model.embedding.weight), 8, 3, 2, 12, CONTEXT, head="masked_lm"), generator)
    model = model.eval().to(device)
    names = [name for name in kron.dense_shapes(model) if name.startswith(("blocks.", "embedding", "head"))]
    names = [name for name in names if name.endswith(("query", "down", "embedding", "head"))]
    matrices = {name: model.get(name) for name in names}
    seen = kron.calibrate(model, BATCHES, matrices)
    found = {
        name: candidates(matrix(module), seen.covariance(name), own_rows=isinstance(module, nn.Embedding))
        for name, module in matrices.items()
    }
    options = dict(found)
    sensitivities = sensitivity.measured_sensitivities(model, matrices, found, seen, 0.6)
    ids = sensitivity._some(seen.sample, sensitivity.COMPARED // len(model.embedding.weight))
    reference, checked = sensitivity._predictions(model, ids), 0
    for name, module in matrices.items():
        fits = np.flatnonzero(options[name].parameters <= 0.6 * np.prod(options[name].dense))
        if not len(fits):
            continue
        choice = options[name].choice(int(fits[options[name].loss[fits].argmin()]))
        fit = fit_of(module, name, choice, seen, sweeps=sensitivity.TRIED_SWEEPS)
        kind = kron.KronEmbedding if isinstance(module, nn.Embedding) else kron.KronLinear
        whole = nn.copy_with(model, {module: kind.from_dense(module, fit)})
        apart = sensitivity.divergence(reference, sensitivity._predictions(whole, ids))
        assert sensitivities[name] == pytest.approx(max(sensitivity.LEAST, apart / max(fit.error**2, 1e-6)), rel=1e-2)
        checked += name.startswith(f"blocks.{len(model.blocks) - 1}.")
    assert checked


def test_a_large_vocabulary_is_compared_on_fewer_tokens() -> None:
    ids = np.arange(12).reshape(3, 4)
    for tokens, shape in ((100, (3, 4)), (12, (3, 4)), (11, (2, 4)), (4, (1, 4)), (3, (1, 3)), (0, (1, 1))):
        found = sensitivity._some(ids, tokens)
        assert found.shape == shape and (found == ids[: shape[0], : shape[1]]).all()


def test_divergence() -> None:
    p, q = (np.random.default_rng(i).dirichlet(np.ones(5), size=(2, 3)) for i in (0, 1))
    wanted = (p * np.log(p / q)).sum(-1).mean()
    assert sensitivity.divergence(np.log(p), np.log(q)) == pytest.approx(wanted)
    assert sensitivity.divergence(np.log(p), np.log(p)) == 0.0
    hidden = 3.0 * p
    assert sensitivity.divergence(hidden, 2.0 * hidden) == pytest.approx(1.0)
