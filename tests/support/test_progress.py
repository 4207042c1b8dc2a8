"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinykron.support import progress
from tinykron.support.progress import Progress

ROOT = Path(__file__).parents[2]
LONG_AGO = 1_000_000.0  # s: beside it, the time that the test itself takes is nothing


def test_the_last_line_says_how_much_how_fast_and_how_long(capsys):
    with Progress("training", total=3_000_000, unit="tokens") as job:
        job.start -= LONG_AGO
        job.advance(1_500_000)
        job.advance(500_000, "loss 1.234")
    out, err = capsys.readouterr()
    assert out == ""
    expected = "training: 2,000,000 of 3,000,000 tokens (67 %), 2 tokens/s, 500000 s left, loss 1.234\n"
    assert err == expected


def test_a_line_comes_only_now_and_then(capsys):
    with Progress("evaluating", total=4) as job:
        job.advance(1)
        assert capsys.readouterr().err == ""
        job.last -= progress.PLAIN_SECONDS
        job.advance(1, "note")
        assert re.fullmatch(
            r"evaluating: 2 of 4 steps \(50 %\), [\d,]+ steps/s, \d+ s left, note\n", capsys.readouterr().err
        )
        job.advance(1)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err.startswith("evaluating: 3 of 4 steps (75 %)")


def test_a_continued_job_counts_the_speed_of_this_run_alone(capsys):
    with Progress("training", total=10_000_000, unit="tokens", done=6_000_000) as job:
        job.start -= LONG_AGO
        job.advance(2_000_000)
        assert job.rate == pytest.approx(2.0, rel=1e-3)
    assert capsys.readouterr().err == "training: 8,000,000 of 10,000,000 tokens (80 %), 2 tokens/s, 1000000 s left\n"


def test_without_any_work_there_is_no_speed_to_tell(capsys):
    with Progress("training", total=100, done=40):
        pass
    with Progress("nothing", total=0):
        pass
    assert capsys.readouterr().err == "training: 40 of 100 steps (40 %)\nnothing: 0 of 0 steps (0 %)\n"


def test_an_error_passes_through_and_the_line_is_written(capsys):
    with pytest.raises(KeyError), Progress("training", total=100) as job:
        job.advance(30)
        raise KeyError
    assert capsys.readouterr().err.startswith("training: 30 of 100 steps (30 %)")


SCRIPT = """
from tinykron.support.progress import Progress
with Progress("reading [/red] text", total=2000, unit="tokens", done=500) as job:
    job.advance(500, "loss 1.5 [b]")
"""


def test_on_a_terminal_there_is_a_bar():
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=True
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that nobody has the other end open any more
            break
        if not part:
            break
        shown += part
    os.close(ours)
    text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown.decode())
    assert process.stdout == b""
    last = text.replace("\r", "\n").strip().splitlines()[-1]
    assert re.search(r"reading \[/red\] text .*━+.* [\d,]+ tokens/s .*loss 1.5 \[b\]", last), text
    assert "of 2,000" not in text  # the plain line is for files
