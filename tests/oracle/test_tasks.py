"""What fine-tuning minimises, beside transformers: classes, scores, spans; and the windows over a long text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import tinykron as tk
from tests.bert_checkpoints import IDS, MASK, TYPES, with_class
from tests.oracle.test_bert import random_bert, write
from tests.tasks.test_squad import LONG, questions
from tests.tiny_tasks import TOKENIZER
from tinykron.data.batch import Batch
from tinykron.tasks import glue, squad
from tinykron.tasks.features import logits_of

pytestmark = pytest.mark.oracle

TARGETS = {
    "glue/mnli": np.array([2, 0]),
    "glue/stsb": np.array([4.2, 0.5], np.float32),
    "squad/1.1": np.array([[1, 3], [0, 6]]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_losses_are_those_of_transformers(tmp_path, name):
    import torch

    task = {**glue.TASKS, **squad.TASKS}[name]
    config = with_class(task.head, labels=task.labels)
    reference = random_bert(config, seed=3)
    reference.config.problem_type = {"glue/stsb": "regression", "glue/mnli": "single_label_classification"}.get(name)
    model = tk.load(write(reference, tmp_path / "theirs"))
    mask_BT = np.ones_like(MASK) if task.head == "span" else MASK  # theirs lets answers stand in padding
    targets = torch.from_numpy(TARGETS[name])
    labels = (
        {"start_positions": targets[:, 0], "end_positions": targets[:, 1]}
        if task.head == "span"
        else {"labels": targets}
    )
    given_ = {"input_ids": IDS, "attention_mask": mask_BT, "token_type_ids": TYPES}
    expected = reference(**{key: torch.from_numpy(value) for key, value in given_.items()}, **labels).loss
    expected.backward()
    batch = Batch(IDS, TARGETS[name], mask_BT, TYPES)
    loss = task.loss(logits_of(model, batch), batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    theirs = reference.qa_outputs if task.head == "span" else reference.classifier
    np.testing.assert_allclose(model.head.linear.weight.grad, theirs.weight.grad.T, rtol=1e-3, atol=1e-5)


@given(context=st.integers(20, 60), stride=st.integers(1, 40))
def test_windows_are_those_of_tokenizers(context, stride):
    task = squad.Squad("squad/2.0", squad.TASKS["squad/2.0"].files, no_answer=True, stride=stride)
    asked = questions(("Which page?", None), context=LONG)
    ours = task.features(TOKENIZER, asked, context)
    theirs = Tokenizer.from_str(TOKENIZER.to_str())
    room = context - ours[0].first - 1
    theirs.enable_truncation(context, stride=room - min(stride, room // 2), strategy="only_second")
    first = theirs.encode("Which page?", LONG)
    expected = [(part.ids, part.type_ids) for part in (first, *first.overflowing)]
    assert [(list(window.ids), list(window.types)) for window in ours] == expected
