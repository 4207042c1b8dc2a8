"""A folder whose exits have parts of their own, in transformers: the full model, as if they were not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import host
from tests.models.test_exit_parts import IDS, with_parts
from tinykron.models.exit_parts import KINDS

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformers_reads_the_full_model(family: str, kind: str, tmp_path: Path) -> None:
    import torch
    import transformers

    model = with_parts(family, kind)
    tk.save(model, tmp_path / "saved")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    assert np.abs(host(model(IDS).logits) - expected).max() <= 1e-4
