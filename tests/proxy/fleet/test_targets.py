"""Which backend a call of model management goes to, and the lists of several backends as one."""

from types import SimpleNamespace

import pytest

from proxy.errors import BadRequest, NotFound, Unavailable
from proxy.fleet.merging import epoch, merged
from proxy.fleet.targets import choose
from proxy.model_names import parse
from proxy.snapshot import NO_POLICY, Model


def state(name, *models, up=True):
    return SimpleNamespace(name=name, is_up=up, has=lambda model: model in models)


LLAMA, QWEN = "llama3.2:latest", "qwen3:8b"
ONE = state("one", LLAMA)
TWO = state("two", LLAMA, QWEN)
DOWN = state("down", up=False)


def model(name):
    parsed = parse(name)
    return Model(parsed, parsed, True, NO_POLICY)


@pytest.mark.parametrize(
    ("states", "wanted", "needs", "chosen"),
    [
        ([ONE], "", None, "one"),
        ([ONE], "", "nope", "one"),  # the backend itself says that it lacks it
        ([ONE, TWO], "two", None, "two"),
        ([ONE, TWO], "one", "qwen3:8b", "one"),
        ([ONE, TWO], "", "qwen3:8b", "two"),
        ([ONE, DOWN], "", "llama3.2", "one"),
    ],
)
def test_one_that_is_named_or_the_only_one_that_can_be_meant(states, wanted, needs, chosen):
    assert choose(states, wanted, model(needs) if needs else None).name == chosen


@pytest.mark.parametrize(
    ("states", "wanted", "needs", "refusal", "said"),
    [
        ([], "", None, Unavailable, "No backend"),
        ([ONE, TWO], "", None, BadRequest, "one, two"),
        ([ONE, TWO], "", "llama3.2", BadRequest, "one, two"),
        ([ONE, TWO], "", "nope", NotFound, "'nope:latest' not found"),
        ([ONE, TWO], "Two", None, BadRequest, "no backend 'Two'"),
        ([ONE, DOWN], "", None, BadRequest, "one, down"),
        ([ONE, DOWN], "down", None, Unavailable, "'down' does not answer"),
        ([DOWN], "", None, Unavailable, "'down' does not answer"),
    ],
)
def test_nothing_is_guessed(states, wanted, needs, refusal, said):
    with pytest.raises(refusal, match=said):
        choose(states, wanted, model(needs) if needs else None)


def item(name, at):
    return {"name": name, "at": at}


def test_each_name_is_listed_once_the_latest_first_by_the_moment_and_not_by_the_text():
    one = {"a": item("a", "2026-05-10T09:00:00.123456789+02:00"), "b": item("b", "2026-05-10T08:30:00Z")}
    two = {"a": item("A", "2026-05-10T08:00:00-07:00"), "c": item("c", "nonsense"), "d": {"name": "d", "at": [1]}}
    found = merged([one, two], "at")
    assert [(name, item["name"]) for name, item in found] == [("a", "A"), ("b", "b"), ("c", "c"), ("d", "d")]
    assert merged([], "at") == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T01:00:00.5+01:00", 0.5),
        ("2318-08-22T12:05:00.123456789+02:00", 11001953100.123455),
        *((text, 0) for text in ("", "None", "x" * 10_000, "99999-01-01T00:00:00Z", "[]")),
    ],
)
def test_a_time_that_is_none_is_older_than_all(text, seconds):
    assert epoch(text) == pytest.approx(seconds)
