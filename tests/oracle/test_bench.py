"""The benchmark beside torch and transformers: both must give the same logits, tokens and losses before it times."""

from __future__ import annotations

import pytest

from tinykron.bench import engine as bench
from tinykron.bench import kron
from tinykron.data.shipped import weights_folder

pytestmark = pytest.mark.oracle


def test_both_engines_agree_and_are_timed():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    report = bench.engine("tiny", threads=1, repeats=1, device="cpu", train_shape=(2, 16))
    assert not report.note
    assert {"torch", "transformers"} <= report.machine.keys()
    assert all(row.theirs.least > 0 and row.ratio.least > 0 for row in report.rows if row.name != "import tinykron")


def test_both_load_and_decode_alike():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    report = bench.decode(weights_folder("gpt2-tiny"), threads=1, repeats=1, device="cpu", new=5)
    assert all(row.theirs.least > 0 and row.ratio.least > 0 for row in report.rows)


def test_every_way_of_a_kronecker_layer_agrees():
    pytest.importorskip("torch")
    cases = [kron.Case((24, 36), "small", (4, 6), terms, 8, back) for terms in (1, 3) for back in (False, True)]
    report = kron.kron(threads=1, repeats=1, device="cpu", chosen=cases)
    for row in report.rows:
        assert {"dense torch", "torch, built", "einsum", "tinykron"} <= row.times.keys()
        assert not row.refused
