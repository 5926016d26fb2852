"""Row T5, pure: what makes two questions one."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.cache.key import SLICE, Hash, Subject, material, normalised, steering

SECRET = b"s" * 32
SUBJECT = Subject("t1", 0, "/api/chat", "llama3.2:latest", "a" * 64, 0)

texts = st.text(max_size=8)
numbers = st.one_of(st.integers(-5, 5), st.floats(0, 2, allow_nan=False))
options = st.dictionaries(
    st.sampled_from(["temperature", "seed", "num_predict", "top_k", "num_ctx"]), numbers, max_size=4
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": texts},
        optional={"images": st.lists(texts, max_size=2)},
    ),
    max_size=3,
)
requests = st.fixed_dictionaries(
    {"messages": messages},
    optional={
        "options": options,
        "think": st.sampled_from([True, False, "low"]),
        "format": st.one_of(st.just("json"), st.dictionaries(texts, texts, max_size=2)),
        "tools": st.lists(st.dictionaries(texts, texts, max_size=2), max_size=2),
        "stream": st.booleans(),
        "keep_alive": st.integers(),
        "context": st.lists(st.integers(0, 9), max_size=3),
    },
)
subjects = st.builds(
    Subject,
    scope=st.sampled_from(["shared", "t1", "t2", "t12", "k1"]),
    epoch=st.integers(0, 3),
    path=st.sampled_from(["/api/chat", "/api/generate", "/v1/chat/completions"]),
    model=st.sampled_from(["llama3.2:latest", "llama3.2:1b"]),
    digest=st.sampled_from(["a" * 64, "b" * 64]),
    context=st.sampled_from([0, 4096]),
    steering=st.sampled_from([(), ((b"anthropic-beta", b"x"),)]),
)


def key(subject, request):
    return Hash(SECRET).add(material(subject, normalised(request))).key


def meaning(request):
    """A request without what does not change its answer; spelled so that 1, 1.0 and True differ."""
    kept = {name: value for name, value in request.items() if name not in ("stream", "keep_alive", "model")}
    kept["options"] = sorted((name, repr(value)) for name, value in kept.get("options", {}).items()) or None
    if "options" not in request:
        kept["options"] = "none"
    return repr(sorted((name, repr(value)) for name, value in kept.items()))


@settings(max_examples=400, deadline=None)
@given(subjects, requests, subjects, requests)
def test_t5_two_keys_are_equal_just_where_the_questions_are(subject, request, other_subject, other):
    same = subject == other_subject and meaning(request) == meaning(other)
    assert (key(subject, request) == key(other_subject, other)) is same


@settings(max_examples=200, deadline=None)
@given(subjects, requests, st.data())
def test_t5_whatever_is_changed_in_a_question_changes_its_key(subject, request, data):
    before = key(subject, request)
    changed = copy.deepcopy(request)
    field = data.draw(st.sampled_from(["messages", "options", "think", "tools", "images", "anything"]))
    if field == "messages":
        changed["messages"] = [*changed["messages"], {"role": "user", "content": "more"}]
    elif field == "options":
        changed["options"] = {**changed.get("options", {}), "top_p": 0.123}
    elif field == "images":
        changed["messages"] = [*changed["messages"], {"role": "user", "content": "", "images": ["QUJD"]}]
    else:
        changed[field] = [{"new": "value"}]
    assert key(subject, changed) != before
    for name, value in (
        ("scope", "t3"), ("epoch", 9), ("path", "/v1/messages"), ("model", "other:1b"), ("digest", "c" * 64),
        ("context", 512), ("steering", ((b"openai-beta", b"y"),)),
    ):  # fmt: skip
        assert key(subject._replace(**{name: value}), request) != before


@given(requests, st.randoms())
def test_the_order_of_fields_and_of_options_is_not_part_of_the_question(request, random):
    shuffled = dict(random.sample(list(request.items()), len(request)))
    if "options" in shuffled:
        shuffled["options"] = dict(random.sample(list(shuffled["options"].items()), len(shuffled["options"])))
    assert key(SUBJECT, shuffled) == key(SUBJECT, request)


def test_the_order_of_a_schema_is_part_of_the_question():
    forth, back = ({"format": {"properties": dict(pairs)}} for pairs in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    assert key(SUBJECT, forth) != key(SUBJECT, back), "models see it"


@pytest.mark.parametrize(
    "more",
    [
        {"stream": True}, {"stream": False}, {"keep_alive": 0}, {"keep_alive": "1h"}, {"model": "llama3.2"},
        {"format": None}, {"stream_options": {"include_usage": True}}, {"stream_options": None},
    ],
)  # fmt: skip
def test_how_an_answer_is_handed_over_is_not_part_of_the_question(more):
    assert key(SUBJECT, {"messages": [], **more}) == key(SUBJECT, {"messages": []})


def test_parts_of_a_question_do_not_run_into_each_other():
    one = material(SUBJECT._replace(model="a", digest="bc"), b"x")
    other = material(SUBJECT._replace(model="ab", digest="c"), b"x")
    assert Hash(SECRET).add(one).key != Hash(SECRET).add(other).key


def test_without_the_secret_of_an_installation_a_key_tells_nothing():
    parts = material(SUBJECT, b"{}")
    assert Hash(SECRET).add(parts).key != Hash(b"t" * 32).add(parts).key


def test_a_large_question_has_the_same_key_a_slice_at_a_time():
    parts = material(SUBJECT, b"x" * (3 * SLICE + 1))
    made = Hash(SECRET)
    assert len(list(made.adding(parts))) > 3
    assert made.key == Hash(SECRET).add(parts).key


def test_each_input_of_many_has_a_key_of_its_own():
    base = Hash(SECRET).add(material(SUBJECT, b"{}"))
    assert base.with_input("a") == base.with_input("a")
    assert len({base.with_input("a"), base.with_input("b"), base.with_input(""), base.key}) == 3


def test_headers_that_steer_a_backend_are_part_of_the_question():
    headers = [(b"user-agent", b"x"), (b"anthropic-version", b"1"), (b"openai-project", b"p")]
    assert steering(headers) == ((b"anthropic-version", b"1"), (b"openai-project", b"p"))
