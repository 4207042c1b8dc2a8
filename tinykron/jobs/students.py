"""The students of a recipe: how each is made of its teacher, and which losses it can have."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tinykron import tasks
from tinykron.distill.losses import Losses
from tinykron.errors import TinykronError
from tinykron.kron.fitting.starts import rank_of
from tinykron.kron.plan import Choice, KronPlan
from tinykron.models.gpt2 import GPT2
from tinykron.nn import Embedding, Linear, Unset


def fitting(losses: Losses, model: Any) -> tuple[Losses, list[str]]:
    """Return the losses without the terms that a model has no head for, and those terms.

    Raises TinykronError if no term is left.
    """
    without = []
    if not model.writes and not model.fills:
        without += ["cross_entropy", "logits"]
    if model.pooler is None:
        without.append("next_sentence")
    left_out = [name for name in without if name in losses.terms]
    if not left_out:
        return losses, []
    if losses.terms <= set(left_out):
        raise TinykronError(f"pretrain: losses: {', '.join(left_out)}: the model has no head for it; name another term")
    nothing: dict[str, Any] = dict.fromkeys(left_out, 0.0)
    return replace(losses, **nothing), left_out


def truncate(teacher: Any, kept: Sequence[int] = ()) -> Any:
    """Return a student of some blocks, all else copied; by default every second, as DistilGPT2. Sanh et al. 2019."""
    kept = list(kept) or list(range(0, len(teacher.blocks), 2))
    student = type(teacher)(teacher.config.with_blocks(len(kept)), Unset())
    state = {}
    for name, array in teacher.state_dict().items():
        parts = name.split(".")
        if parts[0] != "blocks":
            state[name] = array
        elif int(parts[1]) in kept:
            state[".".join(["blocks", str(kept.index(int(parts[1]))), *parts[2:]])] = array
    student.load_state_dict(state)
    student.tokenizer = teacher.tokenizer
    return student


def low_rank_plan(plan: Mapping[str, Choice]) -> KronPlan:
    """Return a plan that makes each factorised matrix one of low rank, with no more parameters."""
    ranks = {name: rank_of(choice.parameters, choice.dense) for name, choice in plan.items() if not choice.is_dense}
    return KronPlan((name, Choice(plan[name].dense, (plan[name].dense[0], 1), rank)) for name, rank in ranks.items())


def with_head_of(teacher: Any, student: Any, task: tasks.Task) -> Any:
    """Return a copy of a student with its fine-tuned teacher's head, and pooler where its own is dense."""
    made = tasks.fitted(student, task, np.random.default_rng(0))
    if isinstance(made, GPT2):
        made.score = copy.deepcopy(teacher.score)
    else:
        made.head = copy.deepcopy(teacher.head)
        if isinstance(made.pooler, Linear):
            made.pooler = copy.deepcopy(teacher.pooler)
    return made


def untie(student: Any, teacher: Any) -> None:
    """Give a student with a tied head a dense one of its own: the teacher's embedding."""
    student.head = Embedding(teacher.config.vocab_size, teacher.config.n_embd, Unset())
    student.head.load_state_dict({"weight": teacher.embedding.weight.data})
    student.config = student.config.changed(tie_word_embeddings=False)
