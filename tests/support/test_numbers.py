"""A number that a user types is checked by type and range, in settings and in options alike."""

from __future__ import annotations

import argparse
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinykron.errors import TinykronError
from tinykron.support.numbers import option, real, whole


@given(value=st.integers(-10, 10), least=st.integers(-5, 5), most=st.integers(-5, 5))
def test_a_whole_number_in_its_range_comes_back_and_no_other(value, least, most):
    if least <= value <= most:
        assert whole("seed", value, least, most) == value
    else:
        with pytest.raises(TinykronError, match=f"seed: found {value}, expected a whole number from {least} to {most}"):
            whole("seed", value, least, most)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, nan, 2**63, -1, 10**5000], ids=type)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(
        TinykronError, match="batch: found .*, expected a whole number (from 0 on|up to 9223372036854775807)$"
    ):
        whole("batch", value)


@given(value=st.floats())
def test_a_finite_number_in_its_range_comes_back_and_no_other(value):
    if 0.0 < value <= 1.0:
        assert real("share", value, above=0.0, most=1.0) == value
    else:
        with pytest.raises(TinykronError, match="share: found .*, expected a number above 0 and up to 1$"):
            real("share", value, above=0.0, most=1.0)


@pytest.mark.parametrize("value", [True, "1", None, nan, inf, -inf, 10**400], ids=type)
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(TinykronError, match="lr: found .*, expected a number from 0 on$"):
        real("lr", value, 0.0)
    with pytest.raises(TinykronError, match="lr: found .*, expected a number that is finite$"):
        real("lr", value)


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "", "nan", "9" * 5000])
def test_an_option_refuses_text_with_the_same_words(text, capsys):
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed", type=option(whole))
    with pytest.raises(argparse.ArgumentError, match="argument --seed: found .*, expected a whole number from 0 on"):
        parser.parse_args(["--seed", text])
    assert parser.parse_args(["--seed", "7"]).seed == 7


def test_an_option_reads_real_numbers():
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--lr", type=option(real, least=0.0))
    assert parser.parse_args(["--lr", "1e-3"]).lr == 1e-3
    for text in ("nan", "1e999", "fast", "-2"):
        with pytest.raises(argparse.ArgumentError, match="expected a number from 0 on"):
            parser.parse_args([f"--lr={text}"])
