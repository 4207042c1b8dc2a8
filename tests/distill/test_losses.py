"""Which terms count, with which weight, when; what is read from a table and what is refused."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinykron.distill.losses import FORMS, OF_THE_TEXT, RELATIONS, Losses, Schedule
from tinykron.errors import TinykronError

KNGPT2 = {"embedding", "attention", "hidden", "cross_entropy"}
TERMS = (*sorted(KNGPT2), "logits", *RELATIONS, "next_sentence")
NONE = dict.fromkeys(TERMS, 0.0)
WEIGHTS = st.integers(0, 8).map(lambda eighths: eighths / 8)


@st.composite
def schedules(draw: Any) -> Schedule:
    begin, until = sorted(draw(st.lists(st.integers(0, 16), min_size=2, max_size=2, unique=True)))
    return Schedule(draw(WEIGHTS), draw(WEIGHTS), begin / 16, until / 16)


@st.composite
def losses(draw: Any) -> Losses:
    """Any losses: at least the cross-entropy counts at all times."""
    weights = {name: draw(WEIGHTS | schedules()) for name in draw(st.sets(st.sampled_from(TERMS)))}
    forms = {name: draw(st.sampled_from(choices)) for name, choices in FORMS.items()}
    options = {"temperature": draw(st.sampled_from([0.5, 1.0, 2.0])), "relation_heads": draw(st.integers(0, 3))}
    return Losses(**(weights | {"cross_entropy": 1.0} | forms | options))


# Schedules ------------------------------------------------------------------------------------------------------------


@given(schedule=schedules(), place=st.integers(0, 16))
def test_a_schedule_is_a_line_between_two_flat_ends(schedule, place):
    progress = place / 16
    span = schedule.until - schedule.begin
    line = schedule.start + (schedule.end - schedule.start) * (progress - schedule.begin) / span
    expected = schedule.start if progress <= schedule.begin else schedule.end if progress >= schedule.until else line
    assert schedule.at(progress) == pytest.approx(expected, abs=1e-12)
    assert schedule.at(0.0) == schedule.start
    assert schedule.at(1.0) == schedule.end


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"start": -1.0, "end": 1.0}, "schedule start: found -1.0"),
        ({"start": 0.0, "end": float("inf")}, "schedule end: found inf"),
        ({"start": 0.0, "end": "1"}, "schedule end: found '1'"),
        ({"start": 0.0, "end": 1.0, "begin": 0.5, "until": 0.5}, "0 <= begin < until <= 1"),
        ({"start": 0.0, "end": 1.0, "until": 1.5}, "0 <= begin < until <= 1"),
        ({"start": 0.0, "end": 1.0, "begin": "0"}, "begin '0'"),
    ],
    ids=str,
)
def test_schedules_refuse(content, complaint):
    with pytest.raises(TinykronError, match=complaint):
        Schedule(**content)


# Losses ---------------------------------------------------------------------------------------------------------------


def test_by_default_they_are_those_of_kngpt2():
    assert Losses().at(0.5) == dict.fromkeys(KNGPT2, 1.0)
    assert str(Losses()) == "embedding 1, attention 1, hidden 1, cross_entropy 1"


@given(given_losses=losses(), place=st.integers(0, 16))
def test_a_term_counts_where_its_weight_is_above_zero(given_losses, place):
    now = given_losses.at(place / 16)
    for name in TERMS:
        weight = getattr(given_losses, name)
        assert now.get(name, 0.0) == (weight.at(place / 16) if isinstance(weight, Schedule) else weight)
    assert all(now.values())
    assert set(now) <= given_losses.terms <= set(TERMS)
    assert given_losses.needs_teacher == any(given_losses.at(t / 16).keys() - set(OF_THE_TEXT) for t in range(17))


@given(given_losses=losses())
def test_losses_survive_json(given_losses):
    assert Losses.from_dict(json.loads(json.dumps(asdict(given_losses)))) == given_losses


def test_losses_are_read_from_toml():
    text = """
    attention = 2
    attention_form = "scores"
    logits = {start = 0.0, end = 1.0, until = 0.25}
    temperature = 2.0
    """
    found = Losses.from_dict(tomllib.loads(text))
    warm_up = Schedule(0.0, 1.0, until=0.25)
    assert found == Losses(attention=2, attention_form="scores", logits=warm_up, temperature=2.0)
    said = "embedding 1, attention 2 (scores), hidden 1, cross_entropy 1"
    assert str(found) == f"{said}, logits 0 -> 1 over 0..0.25 of the run (temperature 2)"
    relations = Losses.from_dict({**NONE, "value_relation": {"start": 1.0, "end": 0.5}, "relation_heads": 4})
    assert str(relations) == "value_relation 1 -> 0.5 (4 heads)"
    forms = Losses(hidden_form="cosine", logits=1.0, logits_form="mse")
    assert str(forms) == "embedding 1, attention 1, hidden 1 (cosine), cross_entropy 1, logits 1 (mse)"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (NONE, "all weights are 0 at 0 of the run"),
        (NONE | {"hidden": Schedule(0.0, 1.0)}, "all weights are 0 at 0 of the run"),
        (NONE | {"hidden": Schedule(1.0, 0.0, until=0.5)}, "all weights are 0 at 0.5 of the run"),
        ({"hidden": -1.0}, "losses: hidden: found -1.0, expected a number of at least 0"),
        ({"attention": float("nan")}, "losses: attention: found nan"),
        ({"logits": True}, "losses: logits: found True"),
        ({"hidden": "much"}, "losses: hidden: found 'much'"),
        ({"attention_form": "mse"}, 'attention_form: found \'mse\', expected "probabilities" or "scores"'),
        ({"hidden_form": "kl"}, 'hidden_form: found \'kl\', expected "mse" or "cosine"'),
        ({"logits_form": None}, 'logits_form: found None, expected "kl" or "mse"'),
        ({"temperature": 0.0}, "temperature: found 0.0, expected a number above 0"),
        ({"relation_heads": 1.5}, "relation_heads: found 1.5"),
        ({"relation_heads": -1}, "relation_heads: found -1"),
        ({"hiden": 1.0}, "losses: unknown hiden; expected some of embedding, attention"),
        ({"hidden": {"start": 1.0, "stop": 0.0}}, "losses: hidden: unknown stop; expected some of start, end"),
        ({"hidden": {"start": 1.0}}, "losses: hidden: found {'start': 1.0}, expected at least start and end"),
    ],
    ids=str,
)
def test_losses_refuse(content, complaint):
    with pytest.raises(TinykronError) as caught:
        Losses.from_dict(content)
    assert complaint in str(caught.value)


@given(first=schedules(), second=schedules())
def test_losses_may_not_vanish_anywhere(first, second):
    """The places that are checked are enough: nowhere else can two lines be 0 that are not 0 there."""
    vanishes = any(not first.at(place / 64) and not second.at(place / 64) for place in range(65))
    try:
        Losses(**(NONE | {"hidden": first, "cross_entropy": second}))
    except TinykronError as error:
        assert "all weights are 0" in str(error) and vanishes
    else:
        assert not vanishes
