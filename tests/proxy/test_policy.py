"""Rows M3 and M4: what policy writes into a request, and what it says of it."""

import pytest

from proxy.dialects import ollama
from proxy.dialects.base import Pin

ORDINARY = Pin(output_cap=1000, output_default=400)


def pinned(request, rules=ORDINARY, *, generates=True):
    """(request as sent, cap, changed)"""
    governed = (ollama.govern_generation if generates else ollama.govern_embedding)(request, rules)
    return request, governed.output_cap, governed.changed


# M3


@pytest.mark.parametrize("name", sorted(ollama.LOAD_OPTIONS))
def test_m3_load_options_of_a_client_are_dropped_and_told(name):
    sent, _, changed = pinned({"options": {name: 1, "seed": 7, "num_predict": 5}})
    assert sent["options"] == {"seed": 7, "num_predict": 5}
    assert changed == [f"options.{name}"]


@pytest.mark.parametrize("value", [0, -1, "5m", "0", "-1", 3600, 0.0])
def test_m3_keep_alive_of_an_ordinary_key_is_dropped_and_told(value):
    sent, _, changed = pinned({"keep_alive": value, "options": {"num_predict": 5}})
    assert "keep_alive" not in sent
    assert changed == ["keep_alive"]


def test_m3_keep_alive_of_a_key_that_manages_passes():
    rules = Pin(output_cap=9, output_default=9, keep_alive="30m", may_unload=True)
    assert pinned({"keep_alive": 0, "options": {"num_predict": 5}}, rules)[0]["keep_alive"] == 0
    assert pinned({}, rules)[0]["keep_alive"] == "30m"


def test_m3_policy_sets_what_a_model_is_loaded_with():
    rules = Pin(1000, 400, num_ctx=8192, load_options=(("num_gpu", 99), ("use_mmap", False)), keep_alive=-1)
    for asked in ({}, {"options": {"num_gpu": 0, "num_ctx": 8192}}, {"keep_alive": 0, "options": {"num_ctx": 4096}}):
        sent, _, changed = pinned(dict(asked), rules)
        assert sent["keep_alive"] == -1
        assert sent["options"] == {"num_ctx": 8192, "num_gpu": 99, "use_mmap": False, "num_predict": 400}
        assert ("keep_alive" in changed) is ("keep_alive" in asked)
        assert ("options.num_ctx" in changed) is (asked.get("options", {}).get("num_ctx") == 4096)


@pytest.mark.parametrize("name", ["shift", "_debug_render_only"])
@pytest.mark.parametrize("value", [True, False])
def test_m3_switches_that_reload_or_reveal_are_dropped_and_told(name, value):
    sent, _, changed = pinned({name: value, "options": {"num_predict": 5}})
    assert name not in sent
    assert changed == [name]


def test_m3_p10_options_nobody_knows_are_dropped_and_not_told_by_name():
    made_up = {"x\r\nset-cookie: a=b": 1, **{f"o{number}": 1 for number in range(5000)}}
    sent, _, changed = pinned({"options": {**made_up, "num_predict": 5}})
    assert sent["options"] == {"num_predict": 5}
    assert changed == ["unknown options"]


def test_m3_every_option_is_known_to_be_of_the_load_or_of_the_call():
    asked = {name: (["x"] if name == "stop" else 1) for name in ollama.OPTIONS.names}
    sent, _, changed = pinned({"options": asked})
    assert sent["options"].keys() == ollama.OPTIONS.names - ollama.LOAD_OPTIONS
    assert set(changed) == {f"options.{name}" for name in ollama.LOAD_OPTIONS}


def test_m3_nulls_say_nothing():
    sent, _, changed = pinned({"keep_alive": None, "options": {"num_ctx": None, "seed": None, "num_predict": 5}})
    assert sent["options"] == {"num_predict": 5}
    assert changed == []


@pytest.mark.parametrize(
    ("options", "context"),
    [({"num_ctx": 8192}, 8192), ({"num_ctx": 0}, 0), ({"num_ctx": -5}, 0), ({"num_ctx": None}, 0), ({}, 0), (None, 0)],
)
def test_m3_the_context_that_is_asked_for(options, context):
    assert ollama.asked_context({"options": options}) == context


@pytest.mark.parametrize(
    ("value", "unloads"),
    [
        *((zero, True) for zero in (0, 0.0, -0.0, "0", "0s", "-0s", "+0", "0m0s", "0h0m0.00s", ".0s", "00ms", "0µs")),
        *(
            (time, False)
            for time in (1, -1, 0.5, "1s", "-1s", "5m", "0.5s", "0h1s", "", " ", "x", "0x", "s", "+", None)
        ),
        *((junk, False) for junk in (" ", "0 ", " 0", "0" * 10**6 + "x", "ms" * 10**6)),
    ],
)
def test_m3_zero_in_every_spelling_that_ollama_takes_unloads(value, unloads):
    assert ollama.unloads({"keep_alive": value}) is unloads
    for something in ({"prompt": "x"}, {"messages": [{}]}, {"images": ["x"]}):
        assert not ollama.unloads({"keep_alive": value, **something})


# M4


@pytest.mark.parametrize(
    ("asked", "cap"),
    [
        ({}, 400),
        ({"options": {}}, 400),
        ({"options": None}, 400),
        *(({"options": {"num_predict": number}}, 400) for number in (None, 0, -1, -2, -(2**63))),
        *(({"options": {"num_predict": number}}, 1000) for number in (1001, 10**9, 2**63 - 1)),
    ],
)
def test_m4_an_absent_endless_or_huge_output_is_capped_and_told(asked, cap):
    sent, reserved, changed = pinned(asked)
    assert sent["options"]["num_predict"] == reserved == cap
    assert changed == [f"options.num_predict={cap}"]


@pytest.mark.parametrize("number", [1, 5, 999, 1000])
def test_m4_what_is_within_the_cap_stays(number):
    sent, reserved, changed = pinned({"options": {"num_predict": number}})
    assert sent["options"]["num_predict"] == reserved == number
    assert changed == []


def test_m4_a_cap_below_the_default_holds_for_calls_that_name_none():
    assert pinned({}, Pin(output_cap=10, output_default=400))[1] == 10


def test_m4_what_generates_nothing_has_no_cap():
    assert pinned({"input": "x"}, generates=False) == ({"input": "x"}, 0, [])
