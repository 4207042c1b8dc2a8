"""Thresholds of a folder: calibrated, written, read back; what cannot be promised is not."""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import suppress

import numpy as np
import pytest

import tinykron as tk
from tests.decoders import deep
from tests.helpers import host
from tests.tiny_teacher import make_teacher, write_text
from tinykron import exits
from tinykron.decode.generate import changes
from tinykron.errors import CheckpointError, DataError, TinykronError, UntrainedExitWarning
from tinykron.exits import thresholds
from tinykron.exits.thresholds import promise_folder, read, read_prompts, refusal

WORDS = "the list holds items and a dict maps keys to values while tuples stay as they are".split()


def prompts(count: int) -> list[str]:
    generator = np.random.default_rng(4)
    return [" ".join(generator.choice(WORDS, 4)) for _ in range(count)]


def lists(folder, exits):
    """Let a folder's configuration list exits as trained; None: no list at all."""
    config = json.loads((folder / "config.json").read_text())
    own = {} if exits is None else {"tinykron": {"exits": exits}}
    config.pop("tinykron", None)
    (folder / "config.json").write_text(json.dumps(config | own))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder whose exits at 1 and 2 of 4 blocks say nearly what the last one says."""
    base = tmp_path_factory.mktemp("thresholds")
    folder = make_teacher(base / "random", write_text(base / "text.txt", lines=100))
    model = tk.load(folder)
    for parameter in model.parameters():
        parameter.data *= 12.0 if parameter.ndim == 2 else 1.0
    for block in model.blocks[1:]:
        block.attention.output.weight.data *= 0.3
        block.mlp.down.weight.data *= 0.3
    tk.save(model, base / "model")
    return lists(base / "model", [1, 2, 4])


@pytest.fixture
def folder(teacher, tmp_path):
    return shutil.copytree(teacher, tmp_path / "model")


def test_a_promise_is_written_and_read_back(folder):
    found, promise = promise_folder(folder, prompts(60), 0.2, 0.1, tokens=4, levels=(0.9, 0.5, 0.1))
    assert found.chosen == promise.thresholds and set(promise.thresholds) == {1, 2}
    assert read(folder) == promise
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "exits.json",
    }
    written = json.loads((folder / "exits.json").read_text())
    assert (written["delta"], written["epsilon"], written["prompts"], written["criterion"]) == (0.2, 0.1, 60, "text")
    assert [one["threshold"] for one in written["tested"]] == [one.candidate[1] for one in found.tested]
    assert 1.0 <= promise.depth <= 4.0
    assert "share of 0.2" in str(promise) and "60 prompts" in str(promise)
    tk.load(folder)  # the file beside the model disturbs nothing


@pytest.mark.parametrize("skipped", ["recompute", "copy"])
def test_what_fails_is_a_text_that_changes(folder, skipped):
    texts = prompts(30)
    found, promise = promise_folder(folder, texts, 0.5, 0.2, tokens=3, skipped=skipped, levels=(0.9, 0.05))
    model, failures = tk.load(folder), {}
    for level in (0.9, 0.05):
        rule = {"confidence": {1: level, 2: level}, "skipped": skipped}
        rows = [model.tokenizer.encode(text).ids for text in texts]
        pairs = [(tk.generate(model, row, 3), tk.generate(model, row, 3, **rule)) for row in rows]
        failures[level] = sum(one.tolist() != other.tolist() for one, other in pairs)
    assert [one.failures for one in found.tested] == list(failures.values())[: len(found.tested)]
    assert promise.skipped == skipped
    assert failures[0.05] > failures[0.9]


def test_what_fails_is_a_loss_that_is_too_far_above(folder):
    texts, bound = prompts(30), 0.02
    found, promise = promise_folder(folder, texts, 0.5, 0.2, bound=bound, levels=(0.9, 0.05))
    model = tk.load(folder)
    for one in found.tested:
        failures = 0
        for text in texts:
            ids = np.array([model.tokenizer.encode(text).ids])
            full, early = (
                exits.losses_by_confidence(model, (ids[:, :-1], ids[:, 1:]), rule)[0] for rule in ({}, one.candidate)
            )
            failures += early > full + bound
        assert one.failures == failures
    assert (promise.criterion, promise.bound, promise.tokens) == ("loss", bound, None)
    assert f"more than {bound:g} nats above" in str(promise)


def test_what_cannot_be_promised_is_said_and_nothing_is_written(folder):
    """A threshold of 0 leaves at once; the texts of one block are not those of four."""
    found, promise = promise_folder(folder, prompts(60), 0.05, 0.05, tokens=6, levels=(0.0,))
    assert promise is None and found.chosen is None
    assert not (folder / "exits.json").exists()
    assert f"{found.tested[0].failures} of 60 prompts fail" in refusal(found)
    assert "no number of prompts proves 0.05" in refusal(found)


@pytest.mark.parametrize(("failures", "of", "delta"), [(1, 60, 0.05), (9, 200, 0.05), (0, 10, 0.02), (3, 100, 0.04)])
def test_so_many_prompts_would_do(failures, of, delta):
    needed = exits.prompts_needed(failures, of, delta, 0.05)
    scaled = int(np.ceil(failures / of * needed))
    assert exits.promise([1], lambda _: np.arange(needed) < scaled, delta, 0.05).chosen == 1
    if needed > of:
        fewer = int(needed * 0.9)
        scaled = int(np.ceil(failures / of * fewer))
        assert exits.binomial_tail(scaled, fewer, delta) > 0.05
    tested = exits.Promised(None, delta, 0.05, of, (exits.Tested({1: 0.9}, failures, 0.5),))
    assert f"about {needed} prompts would do" in refusal(tested)


def test_no_number_of_prompts_proves_a_share_that_is_too_large():
    assert exits.prompts_needed(3, 60, 0.05, 0.05) is None


def test_an_exit_that_was_not_trained_is_warned_of(folder):
    lists(folder, [2, 4])
    with pytest.warns(UntrainedExitWarning, match=r"exit 1 was not trained: config.json lists 2, 4"):
        promise_folder(folder, prompts(30), 0.5, 0.2, (1, 2), tokens=1, levels=(0.9,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thresholds.warn_untrained(folder, (2, 4), (2,))
    with pytest.warns(UntrainedExitWarning, match="exits 1, 2 were not trained: config.json lists none"):
        thresholds.warn_untrained(folder, (), (1, 2))


def test_exits_are_the_trained_ones_below_the_last(folder):
    found, _ = promise_folder(folder, prompts(30), 0.5, 0.2, tokens=1, levels=(0.9,))
    assert list(found.tested[0].candidate) == [1, 2]
    found, _ = promise_folder(folder, prompts(30), 0.5, 0.2, exits=(2, 4), tokens=1, levels=(0.9,))
    assert list(found.tested[0].candidate) == [2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": ["a"] * 58}, TinykronError, "58 prompts prove nothing, whatever they give; at least 59 can"),
        ({"delta": 1.5}, TinykronError, "delta: .*found 1.5"),
        ({"epsilon": 0.0}, TinykronError, "epsilon: .*found 0.0"),
        ({"exits": (2, 1)}, TinykronError, r"from shallow to deep, found \(2, 1\)"),
        ({"exits": (1, 5)}, TinykronError, r"1\.\.4, found 5"),
        ({"exits": (4,)}, TinykronError, r"some below 4 blocks, found \(4,\)"),
        ({"exits": (1, 1)}, TinykronError, "each named once"),
        ({"skipped": "guess"}, TinykronError, "skipped: found 'guess', expected recompute, copy"),
        ({"bound": 0.1, "skipped": "copy"}, TinykronError, "skipped: found 'copy', expected recompute"),
        ({"bound": -1.0}, TinykronError, "bound: .*found -1.0"),
        ({"prompts": [*["a"] * 60, ""]}, DataError, "prompt 61 has 0 tokens, expected 1 to 28, of a context of 32"),
        ({"prompts": ["keys " * 40, *["a"] * 60]}, DataError, r"prompt 1 has \d+ tokens"),
        ({"prompts": ["a"] * 60, "bound": 0.1}, DataError, "prompt 1 has 1 tokens, expected 2 to 32"),
        ({"tokens": 0}, TinykronError, "tokens: found 0, expected 1 to 31, of a context of 32"),
        ({"tokens": 32}, TinykronError, "tokens: found 32"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(folder, options, error, message):
    given = {"prompts": prompts(60), "tokens": 4} | options
    with pytest.raises(error, match=message):
        promise_folder(folder, **given)
    assert not (folder / "exits.json").exists()


def test_a_folder_that_lists_no_exits_needs_some_named(folder):
    lists(folder, None)
    with pytest.raises(TinykronError, match="expected some below 4 blocks, .*config.json lists none"):
        promise_folder(folder, prompts(60))


LEVELS = (0.9, 0.5, 0.1)


def interrupted(folder, monkeypatch, after: int, count: int = 60) -> list[float]:
    """Calibrate until so many levels have been asked, then press Ctrl-C; return the levels."""
    asked: list[float] = []

    def stopping(*given, **options):
        ask = changes(*given, **options)

        def failed(levels):
            if len(asked) == after:
                raise KeyboardInterrupt
            asked.append(levels[1])
            return ask(levels)

        return failed

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(thresholds, "changes", stopping)
        promise_folder(folder, prompts(count), 0.2, 0.1, tokens=4, levels=LEVELS)
    return asked


def test_an_interrupted_calibration_goes_on_where_it_was(folder, monkeypatch):
    assert interrupted(folder, monkeypatch, after=2) == [0.9, 0.5] and (folder / thresholds.UNFINISHED).exists()
    assert interrupted(folder, monkeypatch, after=9) == [0.1]  # the others are known
    assert not (folder / thresholds.UNFINISHED).exists()
    resumed = (folder / "exits.json").read_text()
    promise_folder(folder, prompts(60), 0.2, 0.1, tokens=4, levels=LEVELS)
    assert (folder / "exits.json").read_text() == resumed


def test_what_is_known_stays_until_the_promise_is_written(folder, monkeypatch):
    def pressed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(thresholds, "_depth", pressed)
        with pytest.raises(KeyboardInterrupt):
            promise_folder(folder, prompts(60), 0.2, 0.1, tokens=4, levels=LEVELS)
    assert interrupted(folder, monkeypatch, after=9) == [] and (folder / "exits.json").exists()


def test_levels_that_are_close_are_not_taken_for_each_other(folder):
    known = thresholds.Known(folder, {})
    known.add(0.9999999, np.array([True, False]))
    again = thresholds.Known(folder, {})
    assert again.failed(0.9999999, 2).tolist() == [True, False] and again.failed(1.0, 2) is None
    assert thresholds.Known(folder, {"prompts": 1}).failed(0.9999999, 2) is None


@pytest.mark.parametrize("other", ["prompts", "weights", "damage"])
def test_what_was_found_for_something_else_does_not_count(folder, monkeypatch, other):
    assert interrupted(folder, monkeypatch, after=1) == [0.9]
    if other == "weights":
        model, kept = tk.load(folder), (folder / thresholds.UNFINISHED).read_text()
        model.embedding.weight.data[0, 0] += 1.0
        shutil.rmtree(folder)
        tk.save(model, folder)
        (folder / thresholds.UNFINISHED).write_text(kept)
    elif other == "damage":
        (folder / thresholds.UNFINISHED).write_text('{"asked": ')
    assert interrupted(folder, monkeypatch, after=9, count=59 if other == "prompts" else 60)[0] == 0.9


def test_a_failed_calibration_leaves_an_earlier_promise(folder):
    _, promise = promise_folder(folder, prompts(60), 0.3, 0.1, tokens=2, levels=(0.9,))
    promise_folder(folder, prompts(60), 0.05, 0.05, tokens=6, levels=(0.0,))
    assert read(folder) == promise


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"thresholds": 3}', '{"thresholds": {"one": 0.5}}', '{"thresholds": {}, "tested": []}']
)
def test_a_damaged_promise_is_named(folder, text):
    (folder / "exits.json").write_text(text)
    with pytest.raises(CheckpointError, match="exits.json"):
        read(folder)


def test_a_folder_without_a_promise_says_how_to_make_one(folder):
    with pytest.raises(CheckpointError, match="has no exits.json.*promise FOLDER --delta"):
        read(folder)


@pytest.mark.parametrize("exits", [3, "2,4", [2, 0], [2, "4"], [True]])
def test_a_damaged_list_of_exits_is_named(folder, exits):
    lists(folder, exits)
    with pytest.raises(CheckpointError, match="exits: expected rising numbers of blocks in 1..4, found"):
        promise_folder(folder, prompts(30), 0.5, 0.2)


def test_the_thresholds_are_those_that_generate_takes(folder):
    _, promise = promise_folder(folder, prompts(60), 0.3, 0.1, tokens=2, levels=(0.9,))
    model, trace = tk.load(folder), tk.Trace()
    ids = tk.generate(model, [5, 6], 4, confidence=read(folder).thresholds, trace=trace)
    assert host(ids).shape == (1, 6) and set(trace.depths.ravel().tolist()) <= {*promise.thresholds, 4}


@pytest.mark.slow
def test_1000_calibrations_on_a_models_texts_keep_the_promise():
    """All prompts of two tokens are the world, so that true shares are known; each calibration draws 300 of them."""
    model, epsilon = deep("gpt2", 2), 0.05
    world = [[first, second] for first in range(40) for second in range(40)]
    asked, candidates = (
        changes(model, world, 4, batch=200),
        exits.ladder((1, 2, 3), np.linspace(0.9, 0.05, 18).tolist()),
    )
    failed_CP = np.array([asked(candidate) for candidate in candidates])
    true_C = failed_CP.mean(axis=1)
    delta = float(true_C[(true_C > 0.03).argmax()]) - 1e-3  # a candidate fails just too often: the hardest case
    generator, broken = np.random.default_rng(0), np.zeros(2)
    for _ in range(1000):
        drawn = generator.integers(0, len(world), 300)
        found = exits.promise(
            range(len(candidates)), lambda place, drawn=drawn: failed_CP[place, drawn], delta, epsilon
        )
        too_many = failed_CP[:, drawn].mean(axis=1) > delta
        plug_in = (int(too_many.argmax()) if too_many.any() else len(candidates)) - 1
        for rule, chosen in enumerate((-1 if found.chosen is None else found.chosen, plug_in)):
            broken[rule] += chosen >= 0 and true_C[chosen] > delta
    assert broken[0] / 1000 <= epsilon < broken[1] / 1000


# Prompts --------------------------------------------------------------------------------------------------------------


def test_prompts_are_lines_or_json_lines(tmp_path):
    plain, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("\ufefffirst\n\n second \n", encoding="utf-8")
    assert read_prompts(plain) == ["first", " second "]
    values = [
        "a\nb",
        {"prompt": "p", "text": "t"},
        {"question": "q"},
        {"instruction": "i", "input": "x"},
        {"text": "t"},
    ]
    lines.write_text("\n".join(map(json.dumps, values)))
    assert read_prompts(str(lines)) == ["a\nb", "p", "q", "i", "t"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "found no prompts"),
        ("p.txt", b"\xff\xfe", "cannot be read as UTF-8"),
        ("p.jsonl", b'"a"\n{', "line 2 is no JSON"),
        ("p.jsonl", b'{"answer": "a"}', "line 1: expected a text, or an object with one as prompt, "),
        ("p.jsonl", b"3", "line 1: expected a text"),
        ("p.jsonl", b'{"prompt": ["a"]}', "line 1: expected a text"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        read_prompts(tmp_path / name)
    with pytest.raises(DataError, match="nowhere"):
        read_prompts(tmp_path / "nowhere")
