"""The printed examples; those that can run here do so in tests/browser/test_first_run.py."""

import ast
import json
import shlex

import pytest

from tenants.snippets import snippets

NASTY = "a\"b'c $(touch x) `y` \\ {z}"


@pytest.mark.parametrize("model", ["llama3.2:latest", NASTY])
@pytest.mark.parametrize("slug", snippets("", "", ""))
def test_every_example_has_the_address_the_key_and_the_model_in_it_and_nothing_runs_by_itself(slug, model):
    snippet = snippets("https://gateway.example", "ogw_key", model)[slug]
    assert snippet.title
    assert "https://gateway.example" in snippet.text
    assert "ogw_key" in snippet.text
    if snippet.language == "python":
        literals = {node.value for node in ast.walk(ast.parse(snippet.text)) if isinstance(node, ast.Constant)}
        assert model in literals
    elif snippet.language == "sh":
        words = shlex.split(snippet.text.replace("\\\n", " "))
        body = next((word for word in words if word.startswith('{"model"')), None)
        if body is not None:
            assert json.loads(body)["model"] == model
        elif slug == "claude-code":
            assert f"ANTHROPIC_MODEL={model}" in words
    else:
        assert json.dumps(model) in snippet.text


def test_addresses_are_those_that_each_library_adds_its_paths_to():
    made = snippets("https://gateway.example", "k", "m")
    assert 'base_url="https://gateway.example/v1"' in made["python-openai"].text
    assert 'baseURL: "https://gateway.example/v1"' in made["js-openai"].text
    assert 'base_url="https://gateway.example"' in made["python-anthropic"].text
    assert 'host="https://gateway.example"' in made["python-ollama"].text
    assert "ANTHROPIC_BASE_URL=https://gateway.example\n" in made["claude-code"].text
