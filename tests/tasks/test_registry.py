"""Tasks by name; heads that are kept, put in order, or drawn anew; and a model's score beside a plain count."""

from __future__ import annotations

from dataclasses import replace
from math import isnan, nan

import numpy as np
import pytest

from tests.glue_files import write
from tests.helpers import assert_close, host
from tests.tiny_tasks import CONTEXT, SST2, STSB, TOKENIZER, sentences, tiny_bert, write_sst2
from tests.tiny_training import tiny_gpt2
from tinykron import tasks
from tinykron.errors import TinykronError
from tinykron.models.bert import Bert
from tinykron.tasks import standins
from tinykron.tasks.glue import TASKS as GLUE

IDS = np.array([[2, 8, 9, 3]])
MNLI = GLUE["glue/mnli"]


def named(model: Bert, *names: str) -> Bert:
    """Write names of classes into a configuration."""
    said = {"id2label": {str(number): name for number, name in enumerate(names)}}
    model.config = replace(model.config, extra=model.config.extra | said)
    return model


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Names ----------------------------------------------------------------------------------------------------------------


def test_tasks_are_found_by_name():
    assert tasks.find("glue/sst2") is SST2
    assert {"docs/package", "docs/neighbours", *GLUE} <= set(tasks.TASKS)
    with pytest.raises(TinykronError, match="task: found 'sst2', expected one of docs/package, "):
        tasks.find("sst2")


def test_files_come_from_a_folder_or_are_made(tmp_path, monkeypatch):
    assert tasks.source_of(SST2, tmp_path) == tmp_path
    monkeypatch.setitem(standins.MAKERS, "docs/package", lambda: {"dev.tsv": "x"})
    assert tasks.source_of(standins.TASKS["docs/package"], None) == {"dev.tsv": "x"}
    with pytest.raises(TinykronError, match="glue/sst2: name the folder of its files with --data; only docs/package"):
        tasks.source_of(SST2, None)
    with pytest.raises(TinykronError, match="nowhere: found nothing, expected the files of glue/sst2"):
        tasks.source_of(SST2, tmp_path / "nowhere")


# Heads ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [(), ("LABEL_0", "LABEL_1", "LABEL_2"), ("Entailment", "Neutral", "Contradiction")])
def test_a_head_that_fits_is_kept(device, names):
    model = tiny_bert(head="sequence", labels=3).to(device)
    model = named(model, *names) if names else model
    made = tasks.fitted(model, MNLI, draws())
    assert_close(made(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    assert made.config.extra["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}
    made.head.linear.weight.data += 1.0
    assert not np.array_equal(host(made.head.linear.weight), host(model.head.linear.weight))


def test_classes_in_another_order_are_put_in_order(device):
    model = named(tiny_bert(head="sequence", labels=3).to(device), "contradiction", "ENTAILMENT", "neutral")
    before = host(model(IDS).logits)
    for made in (tasks.ready(model, MNLI), tasks.fitted(model, MNLI, draws())):
        assert_close(made(IDS).logits, before[:, [1, 2, 0]], rtol=1e-6)
    assert_close(model(IDS).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "model",
    [
        tiny_bert(head="masked_lm"),
        tiny_bert(head="sequence", labels=3),
        named(tiny_bert(head="sequence"), "good", "bad"),
    ],
    ids=["masked_lm", "3 classes", "other names"],
)
def test_any_other_head_is_drawn_anew(model):
    made, again, other = (tasks.fitted(model, SST2, draws(seed)) for seed in (0, 0, 1))
    assert (made.config.head, made.config.labels) == ("sequence", 2)
    assert_close(made(IDS).hidden[-1], model(IDS).hidden[-1], rtol=0, atol=0)
    assert_close(made(IDS).logits, again(IDS).logits, rtol=0, atol=0)
    assert not np.allclose(host(made(IDS).logits), host(other(IDS).logits))
    with pytest.raises(TinykronError, match='glue/sst2: the model has a head .* expected "sequence", 2: fine-tune it'):
        tasks.ready(model, SST2)


def test_scores_need_a_head_of_one_number():
    made = tasks.fitted(tiny_bert(), STSB, draws())
    assert made.config.labels == 1 and made.config.extra["problem_type"] == "regression"
    assert made.config.to_dict()["id2label"] == {"0": "LABEL_0"}
    assert tasks.ready(made, STSB) is made


def test_models_that_classify_nothing_are_refused():
    with pytest.raises(TinykronError, match="squad/1.1: expected a Bert, found a GPT2"):
        tasks.ready(tiny_gpt2(), tasks.find("squad/1.1"))
    model = tiny_bert(head="sequence")
    model.tokenizer = None
    with pytest.raises(TinykronError, match="glue/sst2: the model has no tokenizer"):
        tasks.ready(model, SST2)


# Measuring ------------------------------------------------------------------------------------------------------------


def plain_answers(model: Bert, texts: list[str]) -> list[int]:
    return [int(host(model(np.array([TOKENIZER.encode(text).ids])).logits)[0].argmax()) for text in texts]


def test_a_score_is_what_a_plain_count_finds(device, tmp_path):
    model = tiny_bert(head="sequence").to(device)
    found = tasks.evaluate(model, SST2, write_sst2(tmp_path))
    dev = sentences(15, seed=2)
    answers = plain_answers(model, [text for text, _ in dev])
    expected = sum(answer == label for answer, (_, label) in zip(answers, dev, strict=True)) / 15
    assert found.sets == {"dev": {"accuracy": pytest.approx(expected)}}
    assert (found.score, found.examples, found.context) == (pytest.approx(expected), {"dev": 15}, CONTEXT)
    assert f"glue/sst2 dev: accuracy {100 * expected:.2f} (15 examples)" in tasks.render(found)


def test_mnli_has_two_scores_and_says_what_was_left_out(tmp_path):
    model = tiny_bert(head="sequence", labels=3)
    found = tasks.evaluate(model, MNLI, write("glue/mnli", tmp_path), context=12)
    assert list(found.sets) == ["dev_matched", "dev_mismatched"]
    assert (found.examples, found.dropped, found.context) == ({"dev_matched": 1, "dev_mismatched": 1}, 1, 12)
    assert found.score == sum(values["accuracy"] for values in found.sets.values()) / 2
    assert "1 lines left out" in tasks.render(found)
    files = tasks.answer_files(model, MNLI, tmp_path)
    assert list(files) == ["MNLI-m.tsv", "MNLI-mm.tsv"] and len(files["MNLI-m.tsv"].splitlines()) == 3


def test_answers_are_written_in_the_order_of_the_test_set(tmp_path):
    model = tiny_bert(head="sequence")
    text = tasks.answer_files(model, SST2, write_sst2(tmp_path), batch=2)["SST-2.tsv"]
    answers = plain_answers(model, [text for text, _ in sentences(5, seed=3)])
    assert text == "index\tprediction\n" + "".join(f"{n}\t{answer}\n" for n, answer in enumerate(answers))
    with pytest.raises(TinykronError, match="docs/package has no test set"):
        tasks.answer_files(tiny_bert(head="sequence", labels=8), standins.TASKS["docs/package"], tmp_path)


@pytest.mark.parametrize("context", [0, 7, CONTEXT + 1])
def test_a_context_that_cannot_be_is_refused(tmp_path, context):
    with pytest.raises(TinykronError, match=f"context: found {context}, expected 8 to the model's {CONTEXT}"):
        tasks.evaluate(tiny_bert(head="sequence"), SST2, write_sst2(tmp_path), context)


def test_the_mean_of_all_metrics():
    assert tasks.mean_score({"a": {"f1": 0.5, "accuracy": 0.7}, "b": {"accuracy": 0.3}}) == pytest.approx(0.5)
    assert isnan(tasks.mean_score({"a": {"pearson": nan, "spearman": 1.0}})) and isnan(tasks.mean_score({}))
