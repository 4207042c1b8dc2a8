"""`tinykron reproduce sorted-llama`: what Sorted LLaMA and its successors claim, on the shipped GPT-2.

Fine-tuned alike, with the same tokens: the last exit alone (SFT), all exits (SoFT), heads of their own on a frozen
trunk (ICT), an exit cut out and trained by itself (extracted), and what later papers changed. Papers: Sorted LLaMA
(arXiv 2309.08968), SortedNet (2309.00255), LayerSkip (2404.16710), S2D (2407.01955), CALM (2207.07061).
"""

from __future__ import annotations

import copy
import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinykron import data
from tinykron.exits import analysis
from tinykron.exits.losses import SortedLoss, depth_weights, equal_weights
from tinykron.jobs.sort import on_frozen
from tinykron.studies.claims import (
    Answer,
    Relation,
    Values,
    above,
    as_dict,
    both,
    chosen,
    each_less,
    falling,
    less,
    markdown,
    near,
    relation,
    run,
)
from tinykron.studies.sorted_decoding import DECODING
from tinykron.studies.sorted_elastic import ELASTIC
from tinykron.studies.sorted_students import QUICK, Scale, Study, named
from tinykron.support import files
from tinykron.train.loop import fit

RELATIONS: list[Relation] = []
NATS = "held-out loss by exit, nats a token"


# Losses of exits ------------------------------------------------------------------------------------------------------


@relation(
    RELATIONS,
    "S1",
    "inner exits of SoFT beat those of SFT, but perhaps the first",
    "PandaLM +.19 to +.83, first exit -.17 (figure 1)",
    NATS,
    each_less("SoFT", "SFT", skip=1),
)
def s1(study: Study, seed: int) -> Values:
    """The inner exits; what becomes of the last one is S3's question."""
    soft, plain = (study.losses(model, study.inner) for model in (study.soft(seed), study.sft(seed)))
    return named("SoFT", soft) | named("SFT", plain)


@relation(
    RELATIONS,
    "S2",
    "SoFT beats SFT with a head per exit (ICT), but perhaps at the first",
    "+.27 to +.80 from exit 16 on (figure 1)",
    NATS,
    each_less("SoFT", "ICT", skip=1),
)
def s2(study: Study, seed: int) -> Values:
    """ICT: after plain fine-tuning, everything but one new head for each exit is frozen."""
    model = on_frozen(study.sft(seed), "heads", study.inner)
    objective = SortedLoss(model, equal_weights(study.inner))
    fit(model, study.tokens, study.settings(seed), distillation=objective, title="ICT")
    soft = study.losses(study.soft(seed), study.inner)
    return named("SoFT", soft) | named("ICT", study.losses(model, study.inner))


@relation(
    RELATIONS,
    "S3",
    "the full model is as good as after SFT",
    "-.059 (figure 1)",
    "loss of the last exit, nats; within 1 %",
    near("SoFT", "SFT", 0.01),
)
def s3(study: Study, seed: int) -> Values:
    last = [study.blocks]
    return {
        "SoFT": study.losses(study.soft(seed), last)[study.blocks],
        "SFT": study.losses(study.sft(seed), last)[study.blocks],
    }


@relation(
    RELATIONS,
    "S4",
    "deeper is better, and nearer to the last exit",
    "monotone (figure 5b)",
    "loss, and KL to the last exit, nats",
    both(falling("loss"), falling("KL")),
)
def s4(study: Study, seed: int) -> Values:
    model = study.soft(seed)
    drift = analysis.drift(model, study.prompts(seed), study.inner, study.scale.new_tokens)
    kl = dict(zip(study.inner, drift.kl_EN.mean(axis=1).tolist(), strict=True))
    return named("loss", study.losses(model)) | named("KL", kl)


@relation(
    RELATIONS,
    "S5",
    "loses to extracted fine-tuning with as many tokens, wins with twice",
    "-.05 to -.17, then +.03 to +.14 (table 9)",
    "loss of a middle exit, nats",
    both(less("extracted", "SoFT"), less("SoFT, twice the tokens", "extracted")),
)
def s5(study: Study, seed: int) -> Values:
    exit = study.inner[len(study.inner) // 2]
    extracted = study.trained(f"extracted-{exit}", seed, blocks=exit)
    return {
        "SoFT": study.losses(study.soft(seed), [exit])[exit],
        "SoFT, twice the tokens": study.losses(study.soft(seed, 2.0), [exit])[exit],
        "extracted": study.losses(extracted, [exit])[exit],
    }


@relation(
    RELATIONS,
    "S6",
    "a step of SoFT takes as long as one of SFT",
    ".98 times, memory + 27 % (table 3)",
    "seconds and peak memory of a step; within 5 %",
    near("SoFT, seconds", "SFT, seconds", 0.05),
    "The head is a large part of so small a model.",
)
def s6(study: Study, seed: int) -> Values:
    """Seconds and peak megabytes of a step, each beside what the heads' share of the multiplications predicts."""
    found: Values = {}
    for name, exits in (("SFT", [study.blocks]), ("SoFT", list(study.scale.exits))):
        model = copy.deepcopy(study.start).train()
        loss = SortedLoss(model, equal_weights(exits))
        ids, targets = data.sample_batch(study.tokens, study.scale.batch, study.scale.context, np.random.default_rng(0))
        batch = _Batch(ids, targets)

        def step(loss: SortedLoss = loss, batch: Any = batch) -> None:
            loss.start(seed, 0)
            loss(batch)[0].backward()

        step()
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
        tracemalloc.start()
        step()
        found[f"{name}, MB"] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        found[f"{name}, seconds"] = sorted(times)[2]
    vocabulary, width = study.start.embedding.weight.shape
    whole = study.blocks * 12 * width**2 + width * vocabulary
    found["predicted ratio"] = 1.0 + (len(study.scale.exits) - 1) * width * vocabulary / whole
    found["ratio"] = found["SoFT, seconds"] / found["SFT, seconds"]
    return found


@dataclass(frozen=True)
class _Batch:
    ids_BT: np.ndarray
    targets: np.ndarray
    mask_BT: None = None


@relation(
    RELATIONS,
    "S11",
    "drawing exits is as good as taking all, at equal work",
    "SortedNet",
    "mean loss over the exits, nats; within 2 %",
    near("sampled", "all", 0.02),
)
def s11(study: Study, seed: int) -> Values:
    """As many exits are drawn in a step as it has: about the same work."""
    draws = len(study.scale.exits)
    sampled = study.trained("sampled", seed, lambda model: SortedLoss(model, study.weights(model), draws=draws))
    return {
        "sampled": float(np.mean(list(study.losses(sampled).values()))),
        "all": float(np.mean(list(study.losses(study.soft(seed)).values()))),
    }


@relation(
    RELATIONS,
    "S12",
    "sub-models keep 96 % of the full model",
    "up to 160 sub-models (SortedNet)",
    "loss of the last exit over that of each depth; 0.96 asked",
    above("least share", 0.96),
    "By depth alone.",
)
def s12(study: Study, seed: int) -> Values:
    every = list(range(1, study.blocks + 1))
    model = study.trained("every-depth", seed, lambda model: SortedLoss(model, equal_weights(every)))
    losses = study.losses(model, every)
    kept = [losses[study.blocks] / losses[exit] for exit in every]
    return {"sub-models with 96 %": sum(share >= 0.96 for share in kept), "least share": min(kept)}


@relation(
    RELATIONS,
    "B4",
    "weights by depth and KL to the last exit spare the last exit",
    "LayerSkip, Balcony",
    "loss of the last exit, mean of the inner ones, nats",
    less("depth weights and KL, last", "equal, last"),
)
def b4(study: Study, seed: int) -> Values:
    def loss(model: Any) -> SortedLoss:
        return SortedLoss(model, depth_weights(study.scale.exits, study.blocks, 1.0), pull=1.0)

    better = study.losses(study.trained("depth-kl", seed, loss))
    equal = study.losses(study.soft(seed))
    return {
        "depth weights and KL, last": better[study.blocks],
        "equal, last": equal[study.blocks],
        "depth weights and KL, inner": float(np.mean([better[exit] for exit in study.inner])),
        "equal, inner": float(np.mean([equal[exit] for exit in study.inner])),
    }


# The command ----------------------------------------------------------------------------------------------------------


def reproduce(
    folder: str | Path,
    quick: bool = False,
    only: str | None = None,
    scale: Scale | None = None,
    say: Callable[[str], None] = print,
) -> list[Answer]:
    """Answer the relations, those named in `only` or all, and write report.md, report.json and exits.png."""
    scale = scale or (QUICK if quick else Scale())
    relations, folder = chosen([*RELATIONS, *DECODING, *ELASTIC], only), Path(folder)
    study = Study(scale, folder)
    answers = run(relations, study, scale.seeds, folder, asdict(scale), say)
    title, command = "tinykron reproduce sorted-llama", f"tinykron reproduce sorted-llama{' --quick' * quick}"
    files.write(folder / "report.md", markdown(title, answers, how(scale), command))
    files.write(folder / "report.json", json.dumps(as_dict(answers), indent=2) + "\n")
    model, prompts = study.soft(0), study.prompts(0)
    analysis.plot(
        analysis.drift(model, prompts, study.inner, scale.new_tokens),
        analysis.shares(model, prompts[:16], study.inner, (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99), scale.new_tokens),
        folder / "exits.png",
    )
    return answers


def how(scale: Scale) -> str:
    """Return how the relations were run, in words."""
    tokens = scale.steps * scale.batch * scale.context
    return (
        f"{scale.model} with exits {', '.join(map(str, scale.exits))}, fine-tuned on the text that every Python "
        f"carries: {scale.steps} steps of {scale.batch} x {scale.context} tokens ({tokens:,} for each model, twice as "
        f"many where said), AdamW at {scale.lr:g}, cosine. Losses are measured on {scale.held_out:,} held-out tokens, "
        f"texts on {scale.prompts} prompts of 12 tokens continued by {scale.new_tokens}. A seed draws batches and "
        "prompts. A relation holds or fails where all seeds agree, and is open else.\n\n"
        "![exits of the model that was trained with all of them](exits.png)"
    )
