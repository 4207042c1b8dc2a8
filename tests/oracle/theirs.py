"""Models as transformers computes them: random ones, and all that a test compares."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

IGNORED = -100  # cross-entropy's target that does not count, in torch as here


class Results(NamedTuple):
    """What one model makes of one batch, on the host."""

    logits: np.ndarray  # (B, T, V)
    hidden: list[np.ndarray]  # L + 1 of (B, T, D)
    attention: list[np.ndarray]  # L of (B, H, T, T), after mask and softmax
    gradients: dict[str, np.ndarray]  # of the language-model loss, by the hub's names


def random_gpt2(config: dict[str, Any], seed: int, std: float = 0.3) -> Any:
    """Return a GPT2LMHeadModel none of whose parameters is a round number, as an untrained norm or bias would be."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    stops = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**config, **stops, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn_like(parameter)
    return model


def random_model(kind: str, config: dict[str, Any], seed: int, std: float = 0.3) -> Any:
    """Return a model of a class of transformers, none of whose parameters is a round number."""
    import torch
    import transformers

    torch.manual_seed(seed)
    stops = {} if kind.startswith("Bert") else {"bos_token_id": 0, "eos_token_id": 0}
    family = transformers.BertConfig if kind.startswith("Bert") else transformers.LlamaConfig
    model = getattr(transformers, kind)(family(**config, **stops, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn_like(parameter)
    return model


def targets_of(ids_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
    """Return each next token (B, T - 1); IGNORED where it or the token before it is padding."""
    return np.where((mask_BT[:, 1:] & mask_BT[:, :-1]) != 0, ids_BT[:, 1:], IGNORED)


def results(model: Any, ids_BT: np.ndarray, mask_BT: np.ndarray | None = None) -> Results:
    """Run a model of transformers forward and backward; with a mask, positions count from the first token it keeps."""
    import torch

    mask_BT = np.ones_like(ids_BT) if mask_BT is None else mask_BT
    model.zero_grad()
    out = model(
        torch.tensor(ids_BT),
        attention_mask=torch.tensor(mask_BT),
        position_ids=torch.tensor(positions_of(mask_BT)),
        output_hidden_states=True,
        output_attentions=True,
    )
    targets = torch.tensor(targets_of(ids_BT, mask_BT))
    loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    loss.backward()
    return Results(
        out.logits.detach().numpy(),
        [hidden.detach().numpy() for hidden in out.hidden_states],
        [weights.detach().numpy() for weights in out.attentions],
        {name: parameter.grad.numpy() for name, parameter in model.named_parameters()},
    )


def positions_of(mask_BT: np.ndarray) -> np.ndarray:
    """Return the place of each token among those of its row that count; 0 for the padding before them."""
    return np.maximum(mask_BT.cumsum(axis=1) - 1, 0)


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """Return the weights of a loss that is linear in an output, none like another."""
    return np.cos(np.arange(int(np.prod(shape)), dtype=np.float32)).reshape(shape)


def bert_results(model: Any, ids_BT: np.ndarray, mask_BT: np.ndarray, types_BT: np.ndarray) -> Results:
    """Run a BERT of transformers forward and backward, from the logits of its head or the last hidden state."""
    import torch

    model.zero_grad()
    batch = {"attention_mask": torch.tensor(mask_BT), "token_type_ids": torch.tensor(types_BT)}
    out = model(torch.tensor(ids_BT), **batch, output_hidden_states=True, output_attentions=True)
    if "start_logits" in out:
        logits = torch.stack((out.start_logits, out.end_logits), dim=-1)
    else:
        logits = next(out[key] for key in ("logits", "prediction_logits", "last_hidden_state") if key in out)
    (logits * torch.tensor(cotangent(tuple(logits.shape)))).sum().backward()
    return Results(
        logits.detach().numpy(),
        [hidden.detach().numpy() for hidden in out.hidden_states],
        [weights.detach().numpy() for weights in out.attentions],
        {name: parameter.grad.numpy() for name, parameter in model.named_parameters() if parameter.grad is not None},
    )
