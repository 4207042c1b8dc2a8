"""Optimisers and clipping beside torch.optim, in float64 and float32."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import host
from tinykron.nn import Parameter
from tinykron.optim import SGD, AdamW, Group, clip_gradients

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")

SHAPES = [(), (5,), (3, 4), (2, 3, 4)]
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def draw(dtype, seed):
    generator = np.random.default_rng(seed)
    return [np.asarray(generator.standard_normal(shape), dtype) for shape in SHAPES]


def pair(dtype):
    """Return the same parameters as ours and as torch's."""
    starts = draw(dtype, 0)
    return [Parameter(x.copy()) for x in starts], [torch.nn.Parameter(torch.tensor(x)) for x in starts]


def assert_equal_after_20_steps(dtype, ours, theirs, our_optimiser, their_optimiser):
    for step in range(20):
        for p, q, gradient in zip(ours, theirs, draw(dtype, 1 + step), strict=True):
            p.grad, q.grad = gradient.copy(), torch.tensor(gradient)
        our_optimiser.step()
        their_optimiser.step()
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    for p, q in zip(ours, theirs, strict=True):
        assert p.dtype == dtype
        np.testing.assert_allclose(host(p), q.detach().numpy(), rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(dtype, momentum):
    ours, theirs = pair(dtype)
    assert_equal_after_20_steps(
        dtype,
        ours,
        theirs,
        SGD([Group(ours[:2], weight_decay=0.1), Group(ours[2:], scale=0.5)], 0.02, momentum),
        torch.optim.SGD(
            [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "lr": 0.01}], 0.02, momentum
        ),
    )


@DTYPES
def test_adamw(dtype):
    ours, theirs = pair(dtype)
    assert_equal_after_20_steps(
        dtype,
        ours,
        theirs,
        AdamW([Group(ours[:2], weight_decay=0.1), Group(ours[2:], scale=0.5)], 0.02, (0.9, 0.95), 1e-6),
        torch.optim.AdamW(
            [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "lr": 0.01}],
            lr=0.02,
            betas=(0.9, 0.95),
            eps=1e-6,
            weight_decay=0.0,
        ),
    )


@DTYPES
@pytest.mark.parametrize("limit", [0.1, 1.0, 1000.0])
def test_clip_grad_norm(dtype, limit):
    ours, theirs = pair(dtype)
    for p, q, gradient in zip(ours, theirs, draw(dtype, 1), strict=True):
        p.grad, q.grad = gradient.copy(), torch.tensor(gradient)
    norm = clip_gradients(ours, limit)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, limit).item(), rel=1e-6)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-5, atol=1e-8)  # torch adds 1e-6 to the norm
