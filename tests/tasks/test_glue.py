"""GLUE's files as they are, oddities included; losses and metrics of its tasks; what its server is sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.glue_files import FILES, FOLDERS, MRPC, table, write
from tests.helpers import assert_close, leaf
from tests.measure.test_perplexity import log_softmax
from tests.tasks.test_metrics import plain_matthews
from tinykron.data.batch import Batch
from tinykron.errors import DataError
from tinykron.tasks.glue import TASKS, Example

SHARED = Path(__file__).parents[3] / "shared" / "data"


def batch_of(targets) -> Batch:
    nothing = np.zeros((len(targets), 1), np.int64)
    return Batch(nothing, np.asarray(targets), nothing, nothing)


# Reading --------------------------------------------------------------------------------------------------------------

EXPECTED = {  # task, set -> texts, label of each example
    ("glue/cola", "train"): [(('He said "yes.',), 1), (("Yes he 'said.",), 0)],
    ("glue/cola", "dev"): [(("The sailors rode the breeze.",), 1)],
    ("glue/cola", "test"): [(("Bill slept.",), None), (("Slept bill the.",), None)],
    ("glue/sst2", "train"): [(("a charming journey . ",), 1), (("unflinchingly \u2028bleak",), 0)],
    ("glue/sst2", "dev"): [(('" one quote',), 1)],
    ("glue/sst2", "test"): [(("dull",), None)],
    ("glue/mrpc", "train"): [(("Amrozi accused.", "Accused."), 1)],
    ("glue/mrpc", "dev"): [(("He said.", "She said."), 0)],
    ("glue/mrpc", "test"): [(("One.", "Two."), None)],
    ("glue/stsb", "train"): [(("A plane is taking off.", "A plane flies."), 4.75)],
    ("glue/stsb", "dev"): [(('A "man" sings.', "A man eats."), 0.0), (("A dog.", "A dog."), 5.0)],
    ("glue/stsb", "test"): [(("A girl.", "A boy."), None)],
    ("glue/qqp", "train"): [
        (("How is it?", "How was it?"), 0),
        (("What causes stool color to change?", "What causes it?"), 1),
    ],
    ("glue/qqp", "test"): [(("Who?", "Who is it?"), None)],
    ("glue/mnli", "train"): [(("Conceptually.", "Product."), 1), (("You know.", "You forget."), 0)],
    ("glue/mnli", "dev_matched"): [(("The new rights.", "Everyone."), 1)],
    ("glue/mnli", "dev_mismatched"): [(("Your gift.", "Hundreds."), 2)],
    ("glue/mnli", "test_matched"): [(("Hierbas.", "A drink."), None), (("Two.", "Three."), None)],
    ("glue/mnli", "test_mismatched"): [(("What.", "Which."), None)],
    ("glue/qnli", "dev"): [(("Who?", "Him."), 1)],
    ("glue/rte", "dev"): [(("No weapons.", "Weapons."), 0)],
    ("glue/wnli", "test"): [(("I stuck a pin.", "The pin."), None)],
}


@pytest.mark.parametrize(("name", "split"), EXPECTED, ids=" ".join)
@pytest.mark.parametrize("within", ["", "its folder"])
def test_official_files_are_read(tmp_path, name, split, within):
    write(name, tmp_path / (FOLDERS[name] if within else ""))
    found = TASKS[name].read(tmp_path, split)
    assert [(example.texts, example.label) for example in found.examples] == EXPECTED[name, split]


def test_all_nine_tasks_are_there_with_their_official_metrics():
    assert list(TASKS) == list(FILES) == list(FOLDERS)
    metrics = {name: list(task.metrics) for name, task in TASKS.items()}
    special = {
        "glue/cola": ["matthews"],
        "glue/mrpc": ["f1", "accuracy"],
        "glue/qqp": ["f1", "accuracy"],
        "glue/stsb": ["pearson", "spearman"],
    }
    assert metrics == {name: special.get(name, ["accuracy"]) for name in TASKS}
    assert {name: task.dev for name, task in TASKS.items() if task.dev != ["dev"]} == {
        "glue/mnli": ["dev_matched", "dev_mismatched"]
    }
    assert {name: task.labels for name, task in TASKS.items() if task.labels != 2} == {"glue/stsb": 1, "glue/mnli": 3}


def test_what_is_left_out_is_counted():
    assert TASKS["glue/qqp"].read(FILES["glue/qqp"], "train").dropped == 1
    assert TASKS["glue/mnli"].read(FILES["glue/mnli"], "dev_matched").dropped == 1
    assert TASKS["glue/rte"].read(FILES["glue/rte"], "train").dropped == 0


def test_test_sets_keep_their_numbers():
    assert TASKS["glue/sst2"].read(FILES["glue/sst2"], "test").examples[0].index == "7"
    assert TASKS["glue/qqp"].read(FILES["glue/qqp"], "test").examples[0].index == "9"


def test_cola_as_first_released_is_glue_s():
    files = {
        "in_domain_train.tsv": FILES["glue/cola"]["train.tsv"],
        "in_domain_dev.tsv": FILES["glue/cola"]["dev.tsv"],
        "out_of_domain_dev.tsv": table(["c_13", "0", "*", "Somebody just left guess who."]),
    }
    task = TASKS["glue/cola"]
    assert task.read(files, "train") == task.read(FILES["glue/cola"], "train")
    found = [(example.texts[0], example.label) for example in task.read(files, "dev").examples]
    assert found == [("The sailors rode the breeze.", 1), ("Somebody just left guess who.", 0)]


def test_mrpc_as_released_is_cut_by_its_dev_ids():
    rows = [["1", "702876", "702977", "A.", "B."], ["0", "2108705", "2108831", "C.", "D."], ["1", "5", "6", "E.", "F."]]
    files = {
        "msr_paraphrase_train.txt": table(*rows, header=["Quality", *MRPC]),
        "msr_paraphrase_test.txt": table(["1", "7", "8", "G.", "H."], header=["Quality", *MRPC]),
        "dev_ids.tsv": table(["2108705", "2108831"]),
    }
    task = TASKS["glue/mrpc"]
    found = {
        split: [(e.texts, e.label) for e in task.read(files, split).examples] for split in ("train", "dev", "test")
    }
    assert found["train"] == [(("A.", "B."), 1), (("E.", "F."), 1)]
    assert found["dev"] == [(("C.", "D."), 0)]
    assert found["test"] == [(("G.", "H."), None)]
    del files["dev_ids.tsv"]
    with pytest.raises(DataError, match="msr_paraphrase_train.txt: needs dev_ids.tsv beside it"):
        task.read(files, "dev")


def test_the_sts_benchmark_as_released():
    row = ["main-captions", "MSRvid", "2012test", "0024", "2.600", "A girl.", "A boy."]
    files = {"sts-train.csv": table(row, [*row[:5], "One.", "Two.", "http://where"])}
    found = TASKS["glue/stsb"].read(files, "train").examples
    assert [(example.texts, example.label) for example in found] == [
        (("A girl.", "A boy."), 2.6),
        (("One.", "Two."), 2.6),
    ]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("glue/sst2", "sentence\tlabel\na\t1\nb\n", "train.tsv, line 3: found 1 cells, expected 2"),
        ("glue/sst2", "sentence\tlabel\na\tb\t1\n", "train.tsv, line 2: found 3 cells, expected 2"),
        ("glue/sst2", "sentence\tlabel\na\t2\n", "train.tsv, line 2: label '2', expected one of 0, 1"),
        ("glue/sst2", "sentence\tscore\na\t1\n", "expected columns sentence, label; found no label"),
        ("glue/sst2", "sentence\tlabel\n", "train.tsv: expected examples, found none"),
        ("glue/sst2", "", "expected columns sentence, label; found no sentence, label"),
        ("glue/stsb", "sentence1\tsentence2\tscore\na\tb\t5.1\n", "line 2: score '5.1', expected a number from 0 to 5"),
        ("glue/stsb", "sentence1\tsentence2\tscore\na\tb\tnan\n", "line 2: score 'nan'"),
        ("glue/stsb", "sentence1\tsentence2\tscore\na\tb\thigh\n", "line 2: score 'high'"),
    ],
)
def test_files_that_do_not_fit_are_named(name, text, says):
    with pytest.raises(DataError, match=says):
        TASKS[name].read({"train.tsv": text}, "train")


def test_sets_and_files_that_are_not_are_named(tmp_path):
    with pytest.raises(DataError, match="glue/mnli has no set 'dev', expected one of train, dev_matched"):
        TASKS["glue/mnli"].read(tmp_path, "dev")
    with pytest.raises(
        DataError, match="expected dev.tsv or in_domain_dev.tsv with out_of_domain_dev.tsv of glue/cola"
    ):
        TASKS["glue/cola"].read(tmp_path, "dev")
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\nabc\xff\t1\n")
    with pytest.raises(DataError, match="dev.tsv: expected UTF-8 text, found byte 0xff at offset 18"):
        TASKS["glue/sst2"].read(tmp_path, "dev")


@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [("glue/sst2", "sst2", {"train": 67349, "dev": 872}), ("glue/cola", "cola", {"train": 8551, "dev": 1043})],
)
def test_real_files_are_read_whole(name, folder, counts):
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no shared/data/{folder}")
    assert {split: len(TASKS[name].read(SHARED / folder, split).examples) for split in counts} == counts


# Losses ---------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), batch=st.integers(1, 6))
def test_losses_are_mean_cross_entropy_and_mean_squared_error(device, seed, batch):
    generator = np.random.default_rng(seed)
    logits_BC = generator.standard_normal((batch, 3)).astype(np.float32)
    targets_B, weights_C = generator.integers(0, 3, batch), np.array([0.5, 1.0, 3.0], np.float32)
    nats_B = np.array([-log_softmax(row)[target] for row, target in zip(logits_BC, targets_B, strict=True)])
    task = TASKS["glue/mnli"]
    assert_close(task.loss(leaf(logits_BC), batch_of(targets_B)).item(), nats_B.mean(), atol=1e-5)
    weighted = task.loss(leaf(logits_BC), batch_of(targets_B), weights_C)
    assert_close(weighted.item(), (nats_B * weights_C[targets_B]).mean(), atol=1e-5)
    scores_B = generator.uniform(0, 5, batch).astype(np.float32)
    x_B1 = leaf(logits_BC[:, :1])
    error = TASKS["glue/stsb"].loss(x_B1, batch_of(scores_B))
    assert_close(error.item(), float(((logits_BC[:, 0] - scores_B) ** 2).mean()), rtol=1e-5)
    error.backward()
    assert_close(x_B1.grad, (2.0 * (logits_BC[:, :1] - scores_B[:, None]) / batch).astype(np.float32), rtol=1e-4)


def test_weights_of_one_are_no_weights(device):
    logits_BC = leaf(np.random.default_rng(0).standard_normal((4, 3)))
    task, batch = TASKS["glue/mnli"], batch_of([0, 2, 1, 1])
    assert_close(task.loss(logits_BC, batch, np.ones(3, np.float32)).item(), task.loss(logits_BC, batch).item(), 1e-6)


def test_class_weights_let_all_classes_count_alike():
    examples = [Example(("a",), label, "0") for label in (0, 0, 0, 2)]
    weights_C = TASKS["glue/mnli"].class_weights(examples)
    assert weights_C.dtype == np.float32
    assert 3 * weights_C[0] == pytest.approx(weights_C[2])
    assert sum(weights_C[example.label] for example in examples) == pytest.approx(len(examples))
    with pytest.raises(DataError, match="glue/stsb has scores"):
        TASKS["glue/stsb"].class_weights(examples)


# Metrics and answers --------------------------------------------------------------------------------------------------


def test_answers_are_measured_by_their_likeliest_class_or_their_score():
    logits = [np.array(row, np.float32) for row in ([2, 1], [0, 1], [0, 3], [1, 0])]
    examples = [Example(("a",), label, "0") for label in (0, 1, 0, 1)]
    found = TASKS["glue/cola"].measure(examples, [], logits)
    assert found == {"matthews": pytest.approx(plain_matthews([(0, 0), (1, 1), (1, 0), (0, 1)]))}
    assert TASKS["glue/mrpc"].measure(examples, [], logits) == {"f1": 0.5, "accuracy": 0.5}
    scores = [np.array([score], np.float32) for score in (0.1, 2.0, 0.3, 9.0)]
    rated = [Example(("a",), score, "0") for score in (0.0, 2.5, 1.0, 5.0)]
    found = TASKS["glue/stsb"].measure(rated, [], scores)
    assert found["spearman"] == pytest.approx(1.0) and 0.8 < found["pearson"] < 0.99


def test_answers_are_written_as_the_server_takes_them():
    two = [np.array([0.1, 0.9, 0.0]), np.array([0.2, 0.0, 0.9])]
    read = {split: TASKS["glue/mnli"].read(FILES["glue/mnli"], split).examples for split in ("test_matched",)}
    assert TASKS["glue/mnli"].answer_files("test_matched", read["test_matched"], [], two) == {
        "MNLI-m.tsv": "index\tprediction\n0\tneutral\n1\tcontradiction\n"
    }
    example = [Example(("a",), None, "4"), Example(("b",), None, "5")]
    assert TASKS["glue/mnli"].answer_files("test_mismatched", example[:1], [], two[:1]).keys() == {"MNLI-mm.tsv"}
    scores = [np.array([5.3]), np.array([2.71828])]
    assert TASKS["glue/stsb"].answer_files("test", example, [], scores) == {
        "STS-B.tsv": "index\tprediction\n4\t5.000\n5\t2.718\n"
    }
    names = {name for task in TASKS.values() for name in task.submissions.values()}
    assert names == {f"{folder}.tsv" for folder in FOLDERS.values()} - {"MNLI.tsv"} | {"MNLI-m.tsv", "MNLI-mm.tsv"}
