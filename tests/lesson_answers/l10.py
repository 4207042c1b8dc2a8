from __future__ import annotations

from math import sqrt

from tests.lesson_answers import Answers, Wrong
from tinykron.backend import xp_of
from tinykron.fused import softmax as softmax_of


def softmax(x):
    return softmax_of(x).data


def joined(first, second):
    return xp_of(first).concatenate([first, second])


def mixed(query, keys, values):
    return softmax(query @ keys.T / sqrt(query.shape[1])) @ values


def before_it_joins(query, key, value, keys, values):
    return mixed(query, keys, values), joined(keys, key), joined(values, value)


def in_front(query, key, value, keys, values):
    all_keys, all_values = joined(key, keys), joined(value, values)
    return mixed(query, all_keys, all_values), all_keys, all_values


def undivided(query, key, value, keys, values):
    keys, values = joined(keys, key), joined(values, value)
    return softmax(query @ keys.T) @ values, keys, values


def unchanged_cache(query, key, value, keys, values):
    return mixed(query, joined(keys, key), joined(values, value)), keys, values


def itself_alone(query, key, value, keys, values):
    return value, joined(keys, key), joined(values, value)


def answer_alone(query, key, value, keys, values):
    return mixed(query, joined(keys, key), joined(values, value))


def likeliest(model, ids, row=-1, **options):
    return int(model([ids], **options).logits.numpy()[0, row].argmax())


def without_cache(model, ids, count):
    for _ in range(count):
        ids = [*ids, likeliest(model, ids)]
    return ids


def last_alone(model, ids, count):
    for _ in range(count):
        ids = [*ids, likeliest(model, ids[-1:])]
    return ids


def all_again(model, ids, count):
    cache = model.cache(250)
    for _ in range(count):
        ids = [*ids, likeliest(model, ids, cache=cache)]
    return ids


def too_small(model, ids, count):
    cache = model.cache(count)
    return [*ids, likeliest(model, ids, cache=cache)]


def with_cache(model, ids, count, row=-1, skipped=0):
    cache, new = model.cache(len(ids) + count), ids[skipped:]
    for _ in range(count):
        new = [likeliest(model, new, row, cache=cache)]
        ids = [*ids, *new]
    return ids


ANSWERS = Answers(
    wrong=[
        Wrong("attend_next", before_it_joins, "sees itself"),
        Wrong("attend_next", in_front, "behind the others"),
        Wrong("attend_next", undivided, "not divided"),
        Wrong("attend_next", unchanged_cache, "as it was"),
        Wrong("attend_next", itself_alone, "the whole cache"),
        Wrong("attend_next", answer_alone, "expected 3 values"),
        Wrong("write", without_cache, "use the cache"),
        Wrong("write", last_alone, "the last word alone"),
        Wrong("write", all_again, "feed only what is new"),
        Wrong("write", too_small, "made for", "error"),
        Wrong("write", lambda model, ids, count: with_cache(model, ids, count)[len(ids) :], "new words alone"),
        Wrong("write", lambda model, ids, count: with_cache(model, ids, count, row=0), "the last one is wanted"),
        Wrong("write", lambda model, ids, count: with_cache(model, ids, count, skipped=1), "expected"),
        Wrong("write", lambda model, ids, count: with_cache(model, ids, count - 1), "shape"),
    ],
    widgets={
        "written": (1, 40),
        "guess_2": ("all", None),
        "appended": (0, 6),
        "length": (1024, 32768),
    },
    pictures=8,
)
