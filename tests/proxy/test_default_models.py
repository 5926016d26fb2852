"""Names of other services' models: which model of ours answers for them."""

import pytest

from proxy.admission import resolve_model
from proxy.default_models import CHAT, EMBEDDING, SEEDS, Installed, capabilities, survey
from proxy.errors import NotFound
from proxy.routes import ROUTES
from tests.proxy.rules import NOW, new_key, snapshot

ROUTE = ROUTES[b"/api/chat"]["POST"]
INSTALLED = Installed(
    frozenset({"llama3.2:latest", "qwen3:8b", "nomic-embed-text:latest", "gpt-local:latest"}),
    ("gpt-local:latest", "llama3.2:latest", "qwen3:8b"),
    ("nomic-embed-text:latest",),
)


def served(asked, installed=INSTALLED, chosen="", **key):
    """What answers for a name, or the refusal's code and text."""
    row, _, digests = new_key(**key)
    rules = snapshot(row, digests=digests, aliases=SEEDS, default_models={CHAT: chosen, EMBEDDING: ""})
    found = rules.key(row.id, NOW)
    assert found is not None
    try:
        return resolve_model(rules, found, ROUTE, asked, installed).served.upstream
    except NotFound as refusal:
        return f"{refusal.code}: {refusal.message}"


@pytest.mark.parametrize(
    ("asked", "answers"),
    [
        ("gpt-3.5-turbo", "gpt-local:latest"),
        ("GPT-4o", "gpt-local:latest"),
        ("claude-sonnet-4-5", "gpt-local:latest"),
        ("text-embedding-3-small", "nomic-embed-text:latest"),
        ("llama3.2", "llama3.2"),
        ("gpt-local", "gpt-local"),  # is there under this very name
        ("gpt-oss:20b", "gpt-oss:20b"),  # a family of Ollama's own
        ("mistral", "mistral"),
    ],
)
def test_the_first_model_by_name_answers_unless_the_name_is_one_of_ours(asked, answers):
    assert served(asked) == answers


def test_the_chosen_model_answers_even_if_no_backend_has_it_now():
    assert served("gpt-4o", chosen="qwen3:8b") == "qwen3:8b"
    assert served("gpt-4o", chosen="phi4") == "phi4"
    assert served("gpt-local", chosen="phi4") == "gpt-local"


def test_m1_a_key_gets_a_default_that_it_may_use():
    assert served("gpt-4o", models=("qwen3:*",)) == "qwen3:8b"
    assert served("gpt-4o", chosen="llama3.2", models=("qwen3:*",)) == "qwen3:8b"
    assert served("gpt-4o", models=("gpt-*",)) == "gpt-local:latest"
    assert served("gpt-4o", models=("phi4:latest",)).startswith("no_default_model")


def test_m2_a_cloud_model_is_no_default_unless_it_was_chosen():
    assert served("gpt-4o", Installed(), chosen="big:cloud").startswith("no_default_model")
    assert served("gpt-4o", chosen="big:cloud") == "gpt-local:latest"
    everything = (True, True, False, True, False)
    assert served("gpt-4o", chosen="big:cloud", rights=everything) == "big:cloud"


def test_without_any_model_the_refusal_says_what_to_do():
    assert served("gpt-4o", Installed()) == (
        'no_default_model: "gpt-4o:latest" stands for the default chat model, but no backend has one that this key may '
        "use. Choose the default chat model in the admin under Default models, or pull a model."
    )


def test_what_was_worked_out_is_forgotten_when_other_models_are_there():
    row, _, digests = new_key()
    rules = snapshot(row, digests=digests, aliases=SEEDS)
    key = rules.key(row.id, NOW)
    assert not rules.model(key, "gpt-4").allowed
    assert rules.model(key, "gpt-4", INSTALLED).served.upstream == "gpt-local:latest"
    fewer = Installed(frozenset(), ("qwen3:8b",), ())
    assert rules.model(key, "gpt-4", fewer).served.upstream == "qwen3:8b"
    assert rules.still_allows(key, rules.model(key, "gpt-4", INSTALLED))


@pytest.mark.parametrize(
    ("name", "item", "can"),
    [
        ("a", {"capabilities": ["completion", "tools"]}, "completion"),
        ("a", {"capabilities": ["embedding"]}, "embedding"),
        ("a", {"capabilities": [], "details": {"family": "llama", "families": None}}, "completion"),
        ("a", {"details": {"family": "nomic-bert"}}, "embedding"),
        ("a", {"details": {"families": ["bert"]}}, "embedding"),
        ("mxbai-embed-large:latest", {}, "embedding"),
        ("all-minilm:22m", {"details": "odd"}, "embedding"),
        ("phi4:latest", {"capabilities": "odd"}, "completion"),
    ],
)
def test_what_a_model_can_do_is_read_or_guessed_from_its_family(name, item, can):
    assert can in capabilities(name, item)


def test_m2_models_that_answer_elsewhere_are_not_surveyed_as_defaults():
    items = [
        ("b:latest", {}),
        ("a:cloud", {}),
        ("c:latest", {"remote_host": "https://ollama.com"}),
        ("d-embed:latest", {}),
    ]
    assert survey(["x:latest"], items) == Installed(frozenset({"x:latest"}), ("b:latest",), ("d-embed:latest",))
