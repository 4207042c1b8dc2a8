"""The benchmark runs, fills its table, and refuses engines that disagree. How fast anything is, no test says."""

from __future__ import annotations

import json

import pytest

from tinykron.bench import engine as bench
from tinykron.data.shipped import shipped_folder, weights_folder
from tinykron.errors import TinykronError

TASKS = ["forward 1x256", "forward 8x128", "decoding at batch 1, a token", "training step with AdamW, 2x16"]
ITSELF = shipped_folder("benchmarks") / "engine_tinykron.py"
LOSES_A_TENTH = """
import json, sys, numpy as np
options = json.loads(sys.stdin.readline())
print("{}", flush=True)
for line in sys.stdin:
    np.save(options["results"], np.load(options["results"].replace("theirs", "ours")) + 0.1)
    print("{}", flush=True)
"""


def run(peer, config="tiny", **options):
    return bench.engine(
        config, **{"threads": 1, "repeats": 2, "device": "cpu", "train_shape": (2, 16)} | options, peer=peer
    )


@pytest.fixture(scope="module")
def alone():
    return run(None)


@pytest.fixture(scope="module")
def beside_itself():
    return run(ITSELF)


@pytest.mark.parametrize("name", ["alone", "beside_itself"])
def test_every_row_is_measured(name, request):
    report = request.getfixturevalue(name)
    assert [row.name for row in report.rows] == [*TASKS, "import tinykron"]
    for row in report.rows:
        assert 0 < row.ours.least <= row.ours.median <= row.ours.most
        assert (row.products is None) == (row.name == "import tinykron")
        assert row.products is None or 0 < row.products.least <= row.products.most
    assert {"cpu", "cores", "threads", "python", "numpy"} <= report.machine.keys()


def test_loading_and_decoding_of_a_folder():
    report = bench.decode(weights_folder("gpt2-tiny"), threads=1, repeats=1, device="cpu", new=3, peer=ITSELF)
    assert [row.name for row in report.rows] == ["loading", "decoding at batch 1, a token"]
    assert all(row.products.least > 0 and row.ratio.least > 0 for row in report.rows)
    assert (report.rows[0].target, report.rows[0].met) == ("", None)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(TinykronError, match="config.json"):
        bench.decode(tmp_path)


def test_nothing_is_compared_where_there_is_no_other(alone):
    assert all(row.theirs is row.ratio is None for row in alone.rows)
    assert all(row.met is None for row in alone.rows[:-1])


def test_the_ratio_is_of_their_time_to_ours(beside_itself):
    for row in beside_itself.rows[:-1]:
        slowest, fastest = row.theirs.most / row.ours.least, row.theirs.least / row.ours.most
        assert fastest <= row.ratio.least <= row.ratio.median <= row.ratio.most <= slowest
        assert row.met == (row.ratio.median >= float(row.target.removeprefix("ratio >= ")))


def test_spread_is_median_least_and_most():
    assert bench.Spread.of([3.0, 1.0, 2.0, 10.0]) == bench.Spread(2.5, 1.0, 10.0)


def test_the_report_is_printed(alone, beside_itself):
    for report, compared in ((alone, False), (beside_itself, True)):
        text = bench.render(report)
        assert all(row.name in text for row in report.rows)
        assert report.machine["cpu"] in text
        assert ("ratio: the other / tinykron" in text) == compared


def test_the_report_is_plain_values_for_json(beside_itself):
    row = json.loads(json.dumps(beside_itself.as_dict()))["rows"][0]
    assert row["name"] == TASKS[0]
    assert row["ratio"].keys() == {"median", "least", "most"}


def test_a_wrong_result_has_no_speed(tmp_path):
    (tmp_path / "other.py").write_text(LOSES_A_TENTH, encoding="utf-8")
    with pytest.raises(TinykronError, match="forward 1x256: the engines differ by 0.1, allowed is 0.001"):
        run(tmp_path / "other.py")


def test_what_a_failing_engine_said_is_passed_on(tmp_path):
    (tmp_path / "other.py").write_text("raise SystemExit('out of patience')", encoding="utf-8")
    with pytest.raises(TinykronError, match="other.py ended: out of patience"):
        run(tmp_path / "other.py")


@pytest.mark.parametrize(
    "options",
    [{"config": "gpt3"}, {"threads": 0}, {"repeats": 0}, {"train_shape": (1, 0)}, {"device": "abacus"}],
)
def test_bad_arguments_are_refused(options):
    with pytest.raises(TinykronError):
        run(None, **options)


def test_the_table_says_how_to_get_a_comparison(alone):
    text = bench.render(bench.Report(alone.machine, alone.rows, bench.MISSING))
    assert bench.MISSING in text and 'pip install "tinykron[oracle]"' in text  # no bracket is taken for markup
