"""Decoding beside transformers: the same greedy tokens, the same laws to draw from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinykron as tk
from tests.helpers import assert_close
from tinykron.decode.sampling import distribution

pytestmark = pytest.mark.oracle

EOS = 17


def theirs_and_ours(folder: Path, seed: int, **config: Any) -> tuple[Any, Any]:
    """A random GPT-2 of transformers, and the same one loaded from the folder it wrote."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"vocab_size": 60, "n_positions": 48, "n_embd": 24, "n_layer": 3, "n_head": 3, "initializer_range": 0.3}
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS, **config))
    model.eval().save_pretrained(folder)
    return model, tk.load(folder)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_equals_transformers(tmp_path, seed):
    import torch

    theirs, ours = theirs_and_ours(tmp_path, seed)
    prompt = np.random.default_rng(seed).integers(0, 60, (1, 1 + 4 * seed))
    expected = theirs.generate(torch.tensor(prompt), max_new_tokens=24, do_sample=False)
    assert tk.generate(ours, prompt, max_new_tokens=24).tolist() == expected.tolist()


def test_greedy_without_a_stop_token_equals_transformers(tmp_path):
    import torch

    theirs, ours = theirs_and_ours(tmp_path, 0)
    theirs.generation_config.eos_token_id = None
    options = {"attention_mask": torch.ones(1, 2), "max_new_tokens": 46, "do_sample": False}
    expected = theirs.generate(torch.tensor([[EOS, 3]]), **options)
    assert expected.shape == (1, 48)
    assert tk.generate(ours, [EOS, 3], max_new_tokens=None, stop=()).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_padded_batch_equals_transformers(tmp_path, seed):
    import torch

    theirs, ours = theirs_and_ours(tmp_path, seed)
    prompts = [np.random.default_rng((seed, n)).integers(0, 60, n).tolist() for n in (9, 1, 5, 8)]
    prompt_BT = np.array([[EOS] * (9 - len(prompt)) + prompt for prompt in prompts])
    mask_BT = np.array([[0] * (9 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"attention_mask": torch.tensor(mask_BT), "max_new_tokens": 30, "do_sample": False}
    expected = theirs.generate(torch.tensor(prompt_BT), **options).tolist()
    assert tk.generate(ours, prompts, max_new_tokens=30).tolist() == expected
    assert tk.generate(ours, prompt_BT, max_new_tokens=30, mask=mask_BT).tolist() == expected


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 200])
@pytest.mark.parametrize("ties", [False, True])
def test_temperature_and_top_k_equal_the_logits_processors(temperature, top_k, ties):
    check_law(temperature, top_k, None, ties)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [None, 2, 20])
def test_top_p_after_top_k_equals_the_logits_processors(top_k, top_p):
    check_law(0.8, top_k, top_p, ties=False)


def check_law(temperature: float, top_k: int | None, top_p: float | None, ties: bool) -> None:
    """Compare with the processors that transformers' own `generate` builds, in its order."""
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    config = GenerationConfig(do_sample=True, temperature=temperature, top_k=top_k or 0, top_p=top_p or 1.0)
    processors = model._get_logits_processor(config, input_ids_seq_length=1)
    for seed in range(20):
        logits_V = np.random.default_rng(seed).normal(0, 2, 60)
        logits_V = np.round(logits_V) if ties else logits_V
        scores = processors(torch.zeros((1, 1), dtype=torch.long), torch.tensor(logits_V)[None])[0]
        assert_close(distribution(logits_V, temperature, top_k, top_p), scores.softmax(-1).numpy(), rtol=1e-9)
