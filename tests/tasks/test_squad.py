"""SQuAD's files, windows over long texts, and the answers that logits give, beside a search through all spans."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinykron as tk
from tests.helpers import assert_close, leaf
from tests.measure.test_perplexity import log_softmax
from tests.squad_official import evaluate_1, evaluate_2
from tests.tiny_tasks import QUICK, TOKENIZER, tiny_bert
from tinykron import tasks
from tinykron.data.batch import Batch
from tinykron.errors import DataError, TinykronError
from tinykron.jobs import finetune
from tinykron.tasks import squad
from tinykron.tasks.features import collate, predict
from tinykron.tasks.squad import Question, _cuts, _fullest

SHARED = Path(__file__).parents[3] / "shared" / "data" / "squad"
ONE, TWO = squad.TASKS["squad/1.1"], squad.TASKS["squad/2.0"]
TEXT = "The 3th page tells of page 21, and of Élan before it. The 4th page tells of page 28."
LONG = " ".join(f"page {number} tells of page {number + 1}." for number in range(20))


def layout(*asked: tuple[str, list[str] | None], context: str = TEXT, version: str = "v2.0") -> dict:
    """One article of questions; None is a question without an answer."""
    qas = [
        {
            "id": f"q{number}",
            "question": question,
            "answers": [{"text": text, "answer_start": context.index(text)} for text in texts or []],
            **({"is_impossible": texts is None} if version == "v2.0" else {}),
        }
        for number, (question, texts) in enumerate(asked)
    ]
    return {"version": version, "data": [{"title": "Pages", "paragraphs": [{"context": context, "qas": qas}]}]}


def questions(*asked: tuple[str, list[str] | None], context: str = TEXT, task: squad.Squad = TWO) -> list[Question]:
    return task.read({task.files["dev"]: json.dumps(layout(*asked, context=context))}, "dev").examples


# Reading --------------------------------------------------------------------------------------------------------------


def test_both_layouts_are_read_from_a_folder_a_file_and_memory(tmp_path):
    for task, version in ((ONE, "1.1"), (TWO, "v2.0")):
        text = json.dumps(layout(("Which page?", ["3th page", "page 21"]), version=version))
        (tmp_path / task.files["dev"]).write_text(text, encoding="utf-8")
        expected = [Question("q0", "Which page?", TEXT, (("3th page", 4), ("page 21", 22)))]
        for source in (tmp_path, tmp_path / task.files["dev"], {task.files["dev"]: text}):
            assert task.read(source, "dev").examples == expected
    none = questions(("Who?", None))
    assert none[0].answers == () and none[0].texts == []


def test_plausible_answers_of_a_question_without_one_do_not_count():
    content = layout(("Who?", ["page 21"]))
    content["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    assert TWO.read({TWO.files["dev"]: json.dumps(content)}, "dev").examples[0].answers == ()


def broken(change) -> str:
    content = layout(("Which page?", ["3th page"]))
    change(content["data"][0]["paragraphs"][0])
    return json.dumps(content)


BROKEN = {
    "an answer elsewhere": (
        lambda part: part["qas"][0]["answers"][0].update(answer_start=5),
        "question q0: '3th page' should be at 5, found 'th page '",
    ),
    "no context": (lambda part: part.pop("context"), "not in SQuAD's layout: KeyError 'context'"),
    "no questions": (lambda part: part.update(qas=[]), "expected questions, found none"),
    "questions that are none": (lambda part: part.update(qas=[3]), "not in SQuAD's layout: "),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_do_not_fit_are_named(case):
    change, says = BROKEN[case]
    with pytest.raises(DataError, match="dev-v2.0.json: ") as caught:
        TWO.read({TWO.files["dev"]: broken(change)}, "dev")
    assert says in str(caught.value)


def test_what_is_no_file_of_the_task_is_named(tmp_path):
    with pytest.raises(DataError, match="not in SQuAD's layout: JSONDecodeError"):
        TWO.read({TWO.files["dev"]: "{"}, "dev")
    with pytest.raises(DataError, match="q0 has no answer, as some have in squad/2.0"):
        ONE.read({ONE.files["dev"]: json.dumps(layout(("Who?", None)))}, "dev")
    with pytest.raises(DataError, match="dev-v1.1.json: cannot be read"):
        ONE.read(tmp_path, "dev")
    with pytest.raises(DataError, match="has no set 'test', expected one of train, dev"):
        ONE.read(tmp_path, "test")
    with pytest.raises(DataError, match="expected dev-v1.1.json, found nothing"):
        ONE.read({}, "dev")


# Windows --------------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 60), room=st.integers(1, 30), stride=st.integers(1, 40))
def test_windows_cover_a_text_and_each_token_is_fullest_once(length, room, stride):
    cuts = _cuts(length, room, stride)
    assert cuts[0][0] == 0 and cuts[-1][1] == length
    assert all(0 < stop - start <= room for start, stop in cuts)
    for (start, stop), (following, _) in zip(cuts, cuts[1:], strict=False):
        assert following - start == min(stride, max(1, room // 2)) and following <= stop
    counts = np.zeros(length, int)
    for (start, stop), here in zip(cuts, _fullest(cuts), strict=True):
        counts[start:stop] += here
        for token, fullest in enumerate(here, start):
            if fullest:  # more around it than elsewhere; else in a longer window; else in an earlier one
                rivals = [(min(token - a, b - 1 - token), b - a, -a) for a, b in cuts if a <= token < b]
                assert (min(token - start, stop - 1 - token), stop - start, -start) == max(rivals)
    assert (counts == 1).all()


@pytest.mark.parametrize("context", [16, 24, 200])
def test_a_window_is_framed_and_its_target_is_the_answer(context):
    asked = questions(
        ("Which page?", ["page 3 tells"]),
        ("Who tells?", None),
        ("What?", ["page 19"]),
        ("Which end?", ["."]),
        context=LONG,
    )
    windows = TWO.features(TOKENIZER, asked, context)
    start, end = TOKENIZER.token_to_id("[CLS]"), TOKENIZER.token_to_id("[SEP]")
    found = {}
    for window in windows:
        query = TOKENIZER.encode(asked[window.question].question, add_special_tokens=False).ids
        assert list(window.ids[: window.first]) == [start, *query, end] and window.ids[-1] == end
        assert len(window.ids) <= context and len(window.ids) == len(window.types)
        assert window.types == [0] * window.first + [1] * (len(window.ids) - window.first)
        text = LONG[window.spans[0][0] : window.spans[-1][1]]
        assert list(window.ids[window.first : -1]) == TOKENIZER.encode(text, add_special_tokens=False).ids
        if window.target != (0, 0):
            first, last = (place - window.first for place in window.target)
            found.setdefault(window.question, set()).add(LONG[window.spans[first][0] : window.spans[last][1]])
        elif window.question != 1:
            answer, at = asked[window.question].answers[0]
            assert window.spans[0][0] > at or window.spans[-1][1] < at + len(answer)
    assert found == {0: {"page 3 tells"}, 2: {"page 19"}, 3: {"."}}
    assert (len(windows) == 4) == (context == 200)


def test_a_long_question_is_cut_and_one_that_leaves_no_room_is_refused():
    asked = questions(("Which page " * 50, ["page 21"]))
    assert TWO.features(TOKENIZER, asked, 200)[0].first == TWO.question_tokens + 2
    with pytest.raises(DataError, match="context 67 leaves no room for text behind the 64 tokens of a question"):
        TWO.features(TOKENIZER, asked, 67)
    with pytest.raises(DataError, match="question q0: expected a text to look for the answer in, found no token"):
        TWO.features(TOKENIZER, questions(("Which?", None), context="\u200b "), 30)


@given(seed=st.integers(0, 99))
def test_the_loss_is_that_of_first_and_last_token_without_the_padding(device, seed):
    generator = np.random.default_rng(seed)
    lengths, logits_BT2 = [3, 5], generator.standard_normal((2, 5, 2)).astype(np.float32)
    mask_BT = (np.arange(5) < np.array(lengths)[:, None]).astype(np.int64)
    targets = np.array([generator.integers(0, length, 2) for length in lengths])
    batch = Batch(mask_BT, targets, mask_BT, mask_BT)
    x_BT2 = leaf(logits_BT2)
    found = ONE.loss(x_BT2, batch)
    nats = [
        -log_softmax(logits_BT2[row, : lengths[row], side])[targets[row, side]] for row in range(2) for side in range(2)
    ]
    assert found.item() == pytest.approx(np.mean(nats), rel=1e-5)
    found.backward()
    assert_close(x_BT2.grad[0, 3:], np.zeros((2, 2), np.float32))


# Answers --------------------------------------------------------------------------------------------------------------


def every_span(task, asked: Question, windows, logits) -> tuple[dict[str, float], float]:
    """Search all windows for all spans that may be given: the best score of each text, and that of no answer."""
    scores: dict[str, float] = {}
    for window, logits_T2 in zip(windows, logits, strict=True):
        for first in range(len(window.spans)):
            for last in range(first, min(first + task.answer_tokens, len(window.spans))):
                if window.fullest[first]:
                    text = asked.context[window.spans[first][0] : window.spans[last][1]]
                    score = float(logits_T2[window.first + first, 0]) + float(logits_T2[window.first + last, 1])
                    scores[text] = max(score, scores.get(text, -np.inf))
    return scores, min(float(logits_T2[0].sum()) for logits_T2 in logits)


@given(seed=st.integers(0, 999), context=st.sampled_from([16, 24, 60]), longest=st.integers(1, 9))
def test_the_best_answers_are_those_of_a_search_through_all(seed, context, longest):
    generator = np.random.default_rng(seed)
    for task in (replace(ONE, n_best=70, answer_tokens=longest), replace(TWO, n_best=70, answer_tokens=longest)):
        asked = questions(("Which page?", ["page 21"]), task=task)
        windows = task.features(TOKENIZER, asked, context)
        logits = [generator.standard_normal((len(window.ids), 2)).astype(np.float32) for window in windows]
        answer = task.answers(asked, windows, logits)["q0"]
        scores, null = every_span(task, asked[0], windows, logits)
        best = max(scores, key=lambda text: scores[text])
        assert answer.text == best
        assert answer.null_odds == pytest.approx(null - scores[best], abs=1e-5)
        if task.no_answer:
            scores[""] = null
        expected = sorted(scores.values(), reverse=True)[: task.n_best]
        assert [guess.score for guess in answer.best][: len(expected)] == pytest.approx(expected, abs=1e-5)
        total = sum(exp(guess.score) for guess in answer.best)
        assert [guess.probability for guess in answer.best] == pytest.approx(
            [exp(guess.score) / total for guess in answer.best], abs=1e-6
        )


def test_few_candidates_still_give_an_answer():
    task = replace(TWO, n_best=1)
    asked = questions(("Which page?", ["page 21"]))
    [window] = task.features(TOKENIZER, asked, 60)
    logits_T2 = np.zeros((len(window.ids), 2), np.float32)
    logits_T2[window.first + 5, 0] = logits_T2[window.first + 2, 1] = 9.0  # it would end before it starts
    answer = task.answers(asked, [window], [logits_T2])["q0"]
    first = window.spans[2]  # the first of two single tokens
    assert answer.text == TEXT[first[0] : first[1]]


def test_the_null_threshold_decides(tmp_path):
    asked = questions(("Which page?", ["page 21"]), ("Who?", None))
    windows = TWO.features(TOKENIZER, asked, 60)
    logits = []
    for window, null in zip(windows, (1.0, 3.0), strict=True):
        logits_T2 = np.zeros((len(window.ids), 2), np.float32)
        logits_T2[0], logits_T2[window.first + 3] = null, 2.0
        logits.append(logits_T2)
    for threshold, empty in ((-3.0, [True, True]), (0.0, [False, True]), (3.0, [False, False])):
        task = replace(TWO, null_threshold=threshold)
        files = task.answer_files("dev", asked, windows, logits)
        said = json.loads(files["predictions.json"])
        assert [not said[name] for name in ("q0", "q1")] == empty
        assert json.loads(files["null_odds.json"]) == {"q0": -2.0, "q1": 2.0}
        found = task.measure(asked, windows, logits)
        assert found["exact_match"] == pytest.approx(
            evaluate_2(layout(("", ["page 21"]), ("", None))["data"], said)["exact"] / 100
        )
        nbest = json.loads(files["nbest_predictions.json"])["q1"]
        assert nbest[0]["text"] == "" and sum(guess["probability"] for guess in nbest) == pytest.approx(1.0)
    assert set(ONE.answer_files("dev", asked, windows, logits)) == {"predictions.json", "nbest_predictions.json"}


# A model --------------------------------------------------------------------------------------------------------------


def test_a_model_learns_where_the_answer_is_and_is_scored_as_officially(tmp_path):
    pages = [f"page {n} of the number {n + 7} tells of it." for n in range(40)]
    parts = [
        layout(("Which page?", [f"page {n}"]), context=text)["data"][0]["paragraphs"][0] for n, text in enumerate(pages)
    ]
    for number, part in enumerate(parts):
        part["qas"][0]["id"] = f"q{number}"
    for split, chosen in (("train", parts[:32]), ("dev", parts[32:])):
        content = {"version": "1.1", "data": [{"title": "", "paragraphs": chosen}]}
        (tmp_path / f"{split}-v1.1.json").write_text(json.dumps(content))
    tk.save(tiny_bert(context=32), tmp_path / "model")
    plan = replace(QUICK, epochs=12, context=32, lr=2e-2)
    found = finetune.finetune(tmp_path / "model", ONE, tmp_path / "out", tmp_path, plan)
    assert found is not None and found.saved.sets["dev"]["f1"] > 0.8
    files = tasks.answer_files(tk.load(tmp_path / "out"), ONE, tmp_path, 32)
    official = evaluate_1([{"paragraphs": parts[32:]}], json.loads(files["predictions.json"]))
    assert found.saved.details["dev"] == pytest.approx(official)
    assert found.saved.sets["dev"] == pytest.approx({name: value / 100 for name, value in official.items()})
    with pytest.raises(TinykronError, match='squad/1.1: the model has a head "sequence"'):
        tasks.ready(tiny_bert(head="sequence"), ONE)
    with pytest.raises(DataError, match="squad/1.1 has spans"):
        ONE.class_weights([])


def test_a_span_head_is_kept_and_needs_no_names():
    model = tiny_bert(head="span")
    made = tasks.fitted(model, TWO, np.random.default_rng(0))
    batch = collate(TWO.features(TOKENIZER, questions(("Which?", None), context="page 3"), 12))
    assert_close(made(batch.ids_BT).logits, model(batch.ids_BT).logits, rtol=0, atol=0)
    assert "id2label" not in made.config.extra and tasks.ready(made, TWO) is made


@pytest.mark.parametrize(
    ("task", "name", "counts"),
    [(ONE, "xquad.en.json", 1190), (TWO, "squad2-dev-first5articles.json", 1407)],
    ids=["1.1", "2.0"],
)
def test_real_questions_are_read_and_scored_as_officially(task, name, counts):
    if not SHARED.is_dir():
        pytest.skip("no shared/data/squad")
    asked = task.read(SHARED / name, "dev").examples
    assert len(asked) == counts
    few = asked[:: counts // 40]
    model = tiny_bert(head="span", context=64)
    windows = task.features(TOKENIZER, few, 64)
    logits = predict(model, windows)
    said = json.loads(task.answer_files("dev", few, windows, logits)["predictions.json"])
    data = [{"paragraphs": [{"qas": [{"id": q.id, "answers": [{"text": text} for text in q.texts]} for q in few]}]}]
    expected = evaluate_2(data, said)["f1"] if task is TWO else evaluate_1(data, said)["f1"]
    assert 100 * task.measure(few, windows, logits)["f1"] == pytest.approx(expected)
    pointed = [np.zeros((len(window.ids), 2), np.float32) for window in windows]
    for window, logits_T2 in zip(windows, pointed, strict=True):
        (first, last), there = window.target, 9.0 if window.target != (0, 0) else 5.0
        logits_T2[first, 0] = logits_T2[last, 1] = there
    assert task.measure(few, windows, pointed)["exact_match"] > 0.95  # some answers are part of a word
