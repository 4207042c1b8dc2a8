"""What the exits of a model say: the loss of each, how far it is from the last, and which of them serve which tokens.

The analyses of Sorted LLaMA (figures 4 and 5, table 2) for any causal model, as numbers and as one plot.

Letters: B batch, T positions, N output positions, V vocabulary, E exits, L levels of a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import data
from tinykron.backend import to_host
from tinykron.data.masking import Masking
from tinykron.decode.generate import Trace, generate
from tinykron.errors import DataError
from tinykron.exits.losses import Batch, exit_loss
from tinykron.models.checks import check_exits
from tinykron.nn import evaluating
from tinykron.support.progress import Progress
from tinykron.tensor import no_grad

TOKENS_AT_ONCE = 2048  # of a pass

Prompts = Sequence[Sequence[int]]


def losses(
    model: Any, tokens: np.ndarray, context: int, exits: Sequence[int], masking: Masking | None = None
) -> dict[int, float]:
    """Return each exit's mean cross-entropy over a text, in nats a token: {blocks: loss}, all from the same passes.

    tokens   (N,) ids, read in windows of `context` side by side; every token but the first is predicted once
    masking  of a masked language model: hidden tokens are predicted instead, the same ones each time
    """
    inputs_WT, targets_WT = masking.windows(tokens, context) if masking else data.windows(tokens, context)
    rows = max(1, TOKENS_AT_ONCE // context)
    starts = range(0, len(inputs_WT), rows)
    return losses_of(model, [(inputs_WT[i : i + rows], targets_WT[i : i + rows]) for i in starts], exits)


def losses_of(model: Any, batches: Sequence[Batch], exits: Sequence[int], title: str = "") -> dict[int, float]:
    """Return each exit's mean cross-entropy over batches, in nats a target that counts: {blocks: loss}.

    With a `title`, progress is shown. Raises DataError if no target counts.
    """
    depths = check_exits(None, exits, len(model.blocks))
    sums, count = dict.fromkeys(depths, 0.0), 0
    shown = Progress(title, len(batches), "batches") if title else nullcontext()
    with no_grad(), evaluating(model), shown as progress:
        for batch in batches:
            counted = int((batch[1] != data.IGNORED).sum())
            _, terms = exit_loss(model, batch, dict.fromkeys(depths, 1.0))
            sums = {depth: total + terms[f"exit {depth}"] * counted for depth, total in sums.items()}
            count += counted
            if progress:
                progress.advance(1)
    if not count:
        raise DataError("exit losses: expected targets, found none that counts")
    return {depth: total / count for depth, total in sums.items()}


@dataclass(frozen=True)
class Drift:
    """How far exits are from a last exit, by position of the output: means over prompts."""

    exits: tuple[int, ...]
    kl_EN: np.ndarray  # KL(last || exit) of the next token's distribution, in nats
    cosine_EN: np.ndarray  # of the states that enter the head, after the final norm
    agree_EN: np.ndarray  # share whose likeliest token is the same: what a greedy draft would have accepted

    @property
    def agreement_E(self) -> np.ndarray:
        """Share of all positions whose likeliest token is the last exit's: the acceptance rate of greedy drafts."""
        return self.agree_EN.mean(axis=1)


def drift(
    model: Any,
    prompts: Prompts,
    exits: Sequence[int],
    length: int = 20,
    reference: Any = None,
    shortlist: np.ndarray | None = None,
) -> Drift:
    """Return how exits differ from the last exit along the greedy text that this last exit writes.

    reference  the model whose last exit it is; by default the same. Figure 4 crosses two models of one shape
    length     N, output positions; position 0 is the first token after the prompt
    shortlist  ids (K,) of the tokens that exits choose among, where it is asked whether they agree; None: all
    Sorted LLaMA (arXiv 2309.08968), figures 4 and 5: KL and cosine by exit and output position.
    """
    reference = model if reference is None else reference
    depths = check_exits(None, exits, len(model.blocks))
    listed_K = np.arange(model.config.vocab_size) if shortlist is None else shortlist
    kl_EN, cosine_EN, agree_EN = np.zeros((3, len(depths), length))
    _some(prompts)
    for prompt in prompts:
        text_1S = generate(reference, prompt, length, stop=())
        ids_1T, places = text_1S[:, :-1], slice(len(prompt) - 1, None)
        with no_grad(), evaluating(model), evaluating(reference):
            last = reference(ids_1T)
            out = model(ids_1T, exits=[*{*depths, len(model.blocks)}])
            whole_NV, state_ND = _log_softmax(last.logits, places), _rows(last.hidden[-1], places)
            for number, depth in enumerate(depths):
                inner = out.hidden[depth] if depth == len(model.blocks) else model.norm(out.hidden[depth])
                exit_NV, own_ND = _log_softmax(out.exits[depth], places), _rows(inner, places)
                kl_EN[number] += (np.exp(whole_NV) * (whole_NV - exit_NV)).sum(axis=-1)
                lengths_N = np.linalg.norm(state_ND, axis=-1) * np.linalg.norm(own_ND, axis=-1)
                cosine_EN[number] += (state_ND * own_ND).sum(axis=-1) / np.maximum(lengths_N, 1e-30)
                chosen_N = listed_K[exit_NV[:, listed_K].argmax(axis=-1)]
                agree_EN[number] += chosen_N == whole_NV.argmax(axis=-1)
    return Drift(depths, *(sums_EN / len(prompts) for sums_EN in (kl_EN, cosine_EN, agree_EN)))


def _rows(x_1TD: Any, places: slice) -> np.ndarray:
    return to_host(x_1TD.data)[0, places].astype(np.float64)


def _log_softmax(logits_1TV: Any, places: slice) -> np.ndarray:
    logits_NV = _rows(logits_1TV, places)
    logits_NV = logits_NV - logits_NV.max(axis=-1, keepdims=True)
    return logits_NV - np.log(np.exp(logits_NV).sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Shares:
    """Which exits serve the tokens of greedy texts, by the threshold that all exits have in common."""

    levels: tuple[float, ...]
    depths: tuple[int, ...]  # exits, and all blocks
    shares_LE: np.ndarray  # of the tokens; each row adds up to 1
    unchanged_L: np.ndarray  # share of the prompts whose text is that of all blocks

    @property
    def mean_depth_L(self) -> np.ndarray:
        """Blocks behind a token, on average."""
        return self.shares_LE @ np.array(self.depths, float)


def shares(model: Any, prompts: Prompts, exits: Sequence[int], levels: Sequence[float], length: int = 20) -> Shares:
    """Return the share of tokens that leave at each exit for each threshold in `levels`. Sorted LLaMA, section 4.3.

    What skipped blocks have to know is computed later: the texts are those of exact keys and values.
    """
    depths = tuple(sorted({*check_exits(None, exits, len(model.blocks)), len(model.blocks)}))
    _some(prompts)
    shares_LE, unchanged_L = np.zeros((len(levels), len(depths))), np.zeros(len(levels))
    plain = [generate(model, prompt, length, stop=()) for prompt in prompts]
    for number, level in enumerate(levels):
        for prompt, wanted in zip(prompts, plain, strict=True):
            trace = Trace()
            text = generate(model, prompt, length, confidence=dict.fromkeys(depths[:-1], level), stop=(), trace=trace)
            shares_LE[number] += [(trace.depths == depth).sum() for depth in depths]
            unchanged_L[number] += np.array_equal(text, wanted)
    return Shares(tuple(levels), depths, shares_LE / (length * len(prompts)), unchanged_L / len(prompts))


def _some(prompts: Prompts) -> None:
    if not prompts:
        raise DataError("exit analysis: expected prompts, found none")


def plot(drift: Drift, shares: Shares, path: str | Path) -> None:
    """Draw, as PNG: KL and cosine by exit and output position, agreement by depth, who serves at which threshold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    images = (("KL(last || exit), nats", drift.kl_EN), ("cosine of the states before the head", drift.cosine_EN))
    for axis, (title, values_EN) in zip(axes[0], images, strict=True):
        image = axis.imshow(values_EN, aspect="auto", origin="lower", cmap="viridis")
        axis.set(title=title, xlabel="output position", ylabel="exit", yticks=range(len(drift.exits)))
        axis.set_yticklabels([str(exit) for exit in drift.exits])
        figure.colorbar(image, ax=axis)
    axes[1][0].plot(drift.exits, drift.agreement_E, "o-")
    axes[1][0].set(title="share of tokens that the last exit would write, too", xlabel="blocks", ylim=(0, 1.02))
    axes[1][1].stackplot(shares.levels, shares.shares_LE.T, labels=[f"{depth} blocks" for depth in shares.depths])
    axes[1][1].set(title="which exit serves", xlabel="threshold of every exit", ylabel="share of tokens", ylim=(0, 1))
    axes[1][1].legend(fontsize=8, loc="lower left")
    figure.savefig(path, format="png", dpi=110)
