"""The Kronecker benchmark fills its table, and refuses results that differ. How fast anything is, no test says."""

from __future__ import annotations

import json
from itertools import product
from math import exp, log

import pytest

from tinykron.bench import kron
from tinykron.bench.engine import Process, Spread
from tinykron.bench.kron import Case, Report, Row, presets
from tinykron.commands import cli
from tinykron.errors import TinykronError

# A peer that copies our results: "lycoris" takes long at first, "peft" refuses, "pyfastkron" takes a second a row
PEER = """
import json, shutil, sys
options = json.loads(sys.stdin.readline())
print(json.dumps({"torch": "none"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "case":
        answer, rows = {"ways": ["dense torch", "lycoris", "peft", "pyfastkron"]}, request["rows"]
    elif request["do"] == "time":
        answer = {"seconds": 1e-3}
    elif request["way"] == "peft":
        answer = {"refused": "RuntimeError: too many terms"}
    else:
        shutil.copy(options["results"].replace("theirs", "ours") + ".npz", options["results"] + ".npz")
        answer = {"seconds": 1.0 * rows if request["way"] == "pyfastkron" else 0.2}
    print(json.dumps(answer), flush=True)
"""
CASES = [Case((6, 8), "small", (3, 2), terms, rows, back) for terms, rows, back in product((1, 3, 4), (1, 5), (0, 1))]


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    script = tmp_path_factory.mktemp("peer") / "peer.py"
    script.write_text(PEER, encoding="utf-8")
    return script


@pytest.fixture(scope="module")
def report(peer):
    return kron.kron(threads=1, repeats=2, device="cpu", peer=peer, chosen=CASES)


def test_every_possible_case_is_measured(report):
    assert [row.case for row in report.rows] == [case for case in CASES if case.terms < 4]
    assert "4 cases left out: as many parameters as the dense matrix" in report.notes and not report.interrupted
    for row in report.rows:
        assert row.plan in ("a_first", "b_first", "dense")
        assert {"tinykron", "factors", "dense NumPy", "NumPy, built", "dense torch", "lycoris"} <= row.times.keys()
        assert all(0 < spread.least <= spread.median <= spread.most for spread in row.times.values())
        assert row.refused["peft"] == "RuntimeError: too many terms" and "peft" not in row.times
    assert {"cpu", "cores", "threads", "numpy", "cost model", "torch"} <= report.machine.keys()


def test_a_package_that_is_far_too_slow_is_asked_once(report):
    first, *rest = report.rows
    assert first.times["pyfastkron"] == Spread(1000.0, 1000.0, 1000.0)
    assert all(row.refused["pyfastkron"] == "left out: too slow with fewer rows" for row in rest)


def test_without_torch_that_is_said(monkeypatch):
    monkeypatch.setattr(kron, "find_spec", lambda name: None)
    alone = kron.kron(threads=1, repeats=1, device="cpu", chosen=CASES[:1])
    assert kron.MISSING in alone.notes
    assert alone.rows[0].ratio(kron.PEERS) is None and alone.rows[0].ratio(["dense NumPy"]) is not None
    assert kron.MISSING in kron.render(alone)


@pytest.mark.parametrize(("what", "change"), [("lycoris", "+ 0.1"), ("dense torch", "* 1.01")])
def test_a_wrong_result_has_no_speed(tmp_path, what, change):
    script = tmp_path / "wrong.py"
    copying = 'shutil.copy(options["results"].replace("theirs", "ours") + ".npz", options["results"] + ".npz")'
    assert copying in PEER
    changed = f'found[name] {change} if request["way"] == "{what}" else found[name]'
    wrong = 'import numpy; found = numpy.load(options["results"].replace("theirs", "ours") + ".npz"); '
    wrong += f'numpy.savez(options["results"], *({changed} for name in found))'
    script.write_text(PEER.replace(copying, wrong), encoding="utf-8")
    with pytest.raises(TinykronError, match=f"{what} differs from the dense matrix by"):
        kron.kron(threads=1, repeats=1, device="cpu", peer=script, chosen=CASES[:2])


def test_ctrl_c_keeps_what_was_measured(monkeypatch, peer):
    ask, asked = Process.ask, []

    def interrupted(self, request):
        asked.append(request)
        if request.get("do") == "case" and sum("do" in r and r["do"] == "case" for r in asked) > 2:
            raise KeyboardInterrupt
        return ask(self, request)

    monkeypatch.setattr(Process, "ask", interrupted)
    found = kron.kron(threads=1, repeats=1, device="cpu", peer=peer, chosen=CASES)
    assert found.interrupted and len(found.rows) == 1 and "interrupted after 1 of 8 cases" in found.notes


@pytest.mark.parametrize("options", [{"threads": 0}, {"repeats": 0}, {"device": "abacus"}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(TinykronError):
        kron.kron(**{"threads": 1, "repeats": 1, "device": "cpu"} | options, peer=None, chosen=[])


# The table ------------------------------------------------------------------------------------------------------------


def made_up(**times: float) -> Row:
    spreads = {name.replace("_", " "): Spread(t, t, t) for name, t in times.items()}
    return Row(Case((6, 8), "small", (3, 2), 1, 4, False), "b_first", spreads, {})


def test_the_summary_counts_what_is_met():
    rows = [made_up(tinykron=1.0, lycoris=4.0, peft=3.0, dense_NumPy=0.5), made_up(tinykron=2.0, lycoris=2.0, peft=9.0)]
    peers, dense = kron.summary(rows)
    mean = exp((log(3.0) + log(1.0)) / 2)  # of the faster peer in each row
    assert peers.startswith(f"against the best peer: {mean:.2f} times as fast (geometric mean); at least 2.0 in 1 of 2")
    assert "least 1.00: 8 -> 6 small, 1 terms, 4 rows" in peers
    assert dense.startswith("against dense NumPy: 0.50 times as fast (geometric mean); at least 0.95 in 0 of 1")
    assert rows[0].ratio(kron.PEERS) == ("peft", 3.0)


def test_a_target_that_the_multiplications_alone_miss_is_beyond_any_program():
    """The dense product takes 192 multiplications here; a term of (3, 2) x (2, 4) takes 112."""
    quick = made_up(tinykron=1.0, lycoris=9.0, dense_NumPy=0.96)  # .005 a multiplication: .56 for the term
    slow = made_up(tinykron=1.0, lycoris=1.11, dense_NumPy=5.0)
    possible = made_up(tinykron=1.0, lycoris=1.13, dense_NumPy=5.0)
    assert kron.out_of_reach([quick, slow, possible], kron.PEERS, 2.0) == 1
    assert kron.out_of_reach([slow, possible], kron.PEERS, 2.0) == 2
    assert "at least 2.0 in 1 of 3 cases, and 1 are beyond any program" in kron.summary([quick, slow, possible])[0]
    of_dense = kron.summary([quick, slow, possible])[1]
    assert (
        "in 3 of the 3 that take less than 100% of its multiplications; in 0 of the 0 that take less than 50%"
        in of_dense
    )
    both = Case((6, 8), "small", (3, 2), 1, 4, True)
    assert both.multiplications == (3 * 112, 3 * 192)
    assert Case((6, 8), "small", (3, 2), 3, 40, False).multiplications == (40 * 48 + 3 * 48, 40 * 48)


def test_the_report_is_printed_and_plain_values_for_json(report):
    text = kron.render(report)
    assert text.count("8 -> 6 small") >= len(report.rows) and "3x2x2x4" in text
    assert "peft refused 8 cases; first: RuntimeError" in text and report.machine["cpu"] in text
    content = json.loads(json.dumps(report.as_dict()))
    for entry, row in zip(content["rows"], report.rows, strict=True):
        assert entry["case"]["shape"] == [3, 2] and entry["times"]["tinykron"].keys() == {"median", "least", "most"}
        assert tuple(entry["ratios"]["best peer"]) == row.ratio(kron.PEERS)
    assert "interrupted" in kron.render(Report(report.machine, [], ["interrupted after 0 of 8 cases"], True))


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_command_line(monkeypatch, capsys, report, interrupted):
    asked = []
    found = Report(report.machine, report.rows, report.notes, interrupted)
    monkeypatch.setattr(kron, "kron", lambda *arguments: asked.append(arguments) or found)
    assert cli.main(["bench", "kron", "--full", "--threads", "1", "--repeats", "3", "--json"]) == 130 * interrupted
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(report.rows)
    assert cli.main(["bench", "kron"]) == 130 * interrupted
    assert "against the best peer" in capsys.readouterr().out
    assert asked == [(True, 1, 3), (False, 2, 5)]


# What is measured -----------------------------------------------------------------------------------------------------


def test_the_papers_shapes():
    found = presets()
    assert set(found) == {(3072, 768), (768, 768), (768, 3072), (50257, 768)}
    assert found[768, 768] == {"KnGPT2": (384, 768), "KroneckerBERT 8x": (384, 384), "KroneckerBERT 21x": (384, 48)}
    assert found[50257, 768]["KroneckerBERT 21x"] == (50257, 48)
    assert found[3072, 768]["Krony-PT 92M"] == found[768, 3072]["Krony-PT 92M"][::-1] == (1024, 256)
    for dense, papers in found.items():
        for name, (m, n) in papers.items():
            case = Case(dense, name, (m, n), 1, 1, False)
            assert m * case.other[0] == dense[0] and n * case.other[1] == dense[1]


@pytest.mark.parametrize("dense", presets())
def test_balanced_shapes_have_the_fewest_parameters(dense):
    def parameters(m, n):
        return m * n + dense[0] * dense[1] // (m * n)

    pairs = [(m, n) for m in range(1, dense[0] + 1) if dense[0] % m == 0 for n in range(1, 3073) if dense[1] % n == 0]
    found = kron.balanced(dense)
    assert len(set(found)) == 5 and set(found) <= set(pairs)
    assert sorted(parameters(*shape) for shape in found) == sorted(parameters(*pair) for pair in pairs)[:5]


def test_the_short_run_is_a_part_of_the_full_one():
    full, short = kron.cases(True), kron.cases(False)
    assert set(short) < set(full) and len(set(full)) == len(full)
    assert {case.dense for case in full} == {(3072, 768), (768, 768), (768, 3072), (50257, 768)}
    assert {(c.terms, c.rows, c.backward) for c in full} == set(product((1, 4, 16), (1, 16, 128, 1024), (False, True)))
    assert {case.rows for case in short} == {1, 128, 1024} and {case.backward for case in short} == {False, True}


def test_sums_that_save_nothing_are_not_measured():
    assert Case((50257, 768), "KnGPT2", (50257, 384), 1, 1, False).possible
    assert not Case((50257, 768), "KnGPT2", (50257, 384), 4, 1, False).possible
    assert Case((6, 8), "small", (3, 2), 3, 1, False).possible and not Case((6, 8), "s", (3, 2), 4, 1, False).possible
