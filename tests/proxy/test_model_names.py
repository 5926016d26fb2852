"""Row M1 and the names of J8: all spellings of a model are one model, here and at the backend."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.fake_ollama.names import InvalidName, parse_name
from proxy.model_names import MAX_LENGTH, InvalidModelName, canonical_pattern, parse

SPELLINGS = [
    "llama3.2",
    "llama3.2:latest",
    "LLAMA3.2:Latest",
    "library/llama3.2",
    "Library/LLaMa3.2",
    "registry.ollama.ai/library/llama3.2:latest",
    "REGISTRY.ollama.AI/library/llama3.2",
    "https://registry.ollama.ai/library/llama3.2",
    " llama3.2 ",
    "\tllama3.2\n",
    "llama3.2:local",
    "llama3.2:LOCAL",
    "llama3.2:latest:local",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_m1_all_spellings_of_a_model_are_one(spelling):
    assert parse(spelling).canonical == "llama3.2:latest"
    assert canonical_pattern(spelling) == "llama3.2:latest"


@pytest.mark.parametrize(
    ("name", "canonical", "upstream"),
    [
        ("llama3.2", "llama3.2:latest", "llama3.2"),
        ("llama3.2:latest", "llama3.2:latest", "llama3.2:latest"),
        ("Qwen3:8B", "qwen3:8b", "qwen3:8b"),
        ("user/Model", "user/model:latest", "user/model"),
        ("hf.co/Unsloth/Qwen3:Q4_K_M", "hf.co/unsloth/qwen3:q4_k_m", "hf.co/unsloth/qwen3:q4_k_m"),
        ("localhost:5000/library/m", "localhost:5000/library/m:latest", "localhost:5000/library/m"),
        ("m:local-build", "m:local-build", "m:local-build"),
    ],
)
def test_m1_upstream_gets_the_canonical_name_without_a_tag_it_was_not_given(name, canonical, upstream):
    assert (parse(name).canonical, parse(name).upstream) == (canonical, upstream)


@pytest.mark.parametrize(
    ("name", "cloud"), [("m:cloud", True), ("m:120B-Cloud", True), ("m:cloudy", False), ("cloud", False)]
)
def test_m1_names_that_leave_the_house_are_known_in_any_case(name, cloud):
    assert parse(name).cloud is cloud


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ":tag",
        "m:",
        "a b",
        "../x",
        "m/",
        "a//m",
        "a/b/c/d",
        "m@sha256:0123",
        "-m",
        ".m",
        "m:-t",
        "a:b:c",
        "m:local:local",
        "m:local:cloud",
        "m:cloud:local",
        "hf.co/m",
        "m\x00",
        "\x00m",
        "m\x1f",
        "\x1fm",
        "m\x7f",
        "a\nb",
        "m\x85",
        "\u00a0m",
        "modèle",
        "ｌlama",
        "m%2f",
        "m?x",
        "m#x",
        "\u202em",
        "m" * 81,
        "x" * (MAX_LENGTH + 1),
        "/".join(("h" * 350, "n" * 80, "m" * 80)),
    ],
)
def test_m1_j8_what_is_no_name_is_refused(name):
    with pytest.raises(InvalidModelName):
        parse(name)


PARTS = st.sampled_from(
    [
        "llama3.2",
        "LLAMA",
        "library",
        "registry.ollama.ai",
        "hf.co",
        "user",
        "host:1",
        "",
        "..",
        "-",
        "a b",
        "latest",
        "7b",
    ]
)
JOINTS = st.sampled_from(["/", ":", "://", "", " ", ":local", ":cloud", "-cloud", ":LOCAL", "\n", "\x00", "@"])


@settings(max_examples=3000, deadline=None, derandomize=True)
@given(st.lists(st.one_of(PARTS, JOINTS), max_size=9).map("".join) | st.text(max_size=30))
def test_m1_what_is_sent_means_the_same_to_ollama_as_it_did_to_us(name):
    try:
        parsed = parse(name)
    except InvalidModelName:
        return
    assert parse(parsed.upstream).canonical == parse(parsed.canonical).canonical == parsed.canonical
    at_ollama, as_sent = parse_name(name), parse_name(parsed.upstream)
    assert at_ollama.key == as_sent.key
    assert (at_ollama.cloud, as_sent.cloud) == (parsed.cloud, parsed.cloud)
    assert parsed.canonical.isascii()
    assert parsed.canonical.isprintable()
    assert len(parsed.canonical) <= MAX_LENGTH


def test_m1_every_name_that_ollama_takes_is_taken():
    """But for those with an empty part, and those that would not survive being sent."""
    rng = random.Random("M1")
    pieces = ["llama3.2", "Q", "_x", "a-b", "library", "hf.co", ":", ":", "/", "/", "latest", "local", "cloud", " "]
    taken = 0
    for _ in range(5000):
        name = "".join(rng.choices(pieces, k=rng.randint(1, 6)))
        try:
            theirs = parse_name(name)
        except InvalidName:
            continue
        if theirs.tag.lower() == "local" or "//" in name or name.strip().startswith("/"):
            continue
        assert parse(name).canonical == theirs.display.lower(), name
        taken += 1
    assert taken > 500


def test_m1_patterns_stay_patterns():
    assert canonical_pattern(" Qwen3:* ") == "qwen3:*"
    assert canonical_pattern("no name at all") == "no name at all"
