"""Every example that a key's page prints is executed as it is printed.

Programs that are not here (Claude Code, Open WebUI's image, Continue) are stood in for by what they do with what the
example gives them: a call to the address, with the key and the model.
"""

import asyncio
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from proxy.fake_ollama import FakeOllama
from tenants.snippets import snippets
from tests.live.conftest import make_gateway

__all__ = ["make_gateway"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".venv-clients/sdks/bin/python"
MODEL = "llama3.2:latest"

CLAUDE = """#!/bin/sh
exec curl -sS --fail-with-body "$ANTHROPIC_BASE_URL/v1/messages?beta=true" \\
  -H "Authorization: Bearer $ANTHROPIC_AUTH_TOKEN" -H "anthropic-version: 2023-06-01" \\
  -d '{"model": "'"$ANTHROPIC_MODEL"'", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}'
"""
DOCKER = """#!/bin/sh
for word in "$@"; do case "$word" in OPENAI_*) export "$word";; esac; done
curl -sS --fail-with-body "$OPENAI_API_BASE_URL/models" -H "Authorization: Bearer $OPENAI_API_KEY" >/dev/null || exit 1
exec curl -sS --fail-with-body "$OPENAI_API_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -d '{"model": "llama3.2:latest", "messages": [{"role": "user", "content": "hi"}]}'
"""


@pytest.fixture
async def made(make_gateway):
    """The examples, as printed for a key of a gateway that runs."""
    async with FakeOllama(models=["llama3.2"], slots=4) as fake:
        gateway = make_gateway()
        gateway.make_backend(fake.url)
        row, key = gateway.make_key()
        await asyncio.to_thread(gateway.start)
        gateway.examples = snippets(gateway.url, key, MODEL)
        gateway.key_row = row
        yield gateway


def output_of(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=HERE, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(slug, snippet, tmp_path):
    """(command, further environment) by which an example runs."""
    if snippet.language == "python":
        return [str(PYTHON), "-c", snippet.text], {}
    if snippet.language == "javascript":
        return ["node", "--input-type=module", "-e", snippet.text], {}
    if slug == "continue":
        chosen = dict(re.findall(r'^ +(?:- )?(\w+): "?([^"\n]*)"?$', snippet.text, re.MULTILINE))
        text = snippets(chosen["apiBase"].removesuffix("/v1"), chosen["apiKey"], chosen["model"])["python-openai"].text
        return [str(PYTHON), "-c", text], {}
    for name, script in (("claude", CLAUDE), ("docker", DOCKER)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return ["sh", "-ec", snippet.text], {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


async def test_every_printed_example_runs(made, tmp_path):
    for slug, snippet in made.examples.items():
        command, environment = program(slug, snippet, tmp_path)
        said = await asyncio.to_thread(lambda c=command, e=environment: output_of(c, env={**os.environ, **e}))
        assert said.strip(), f"{slug}: {shlex.join(command)[:200]}"
        print(f"{slug}: {said.strip()[:60]}")
    records = await made.wait_for_records(len(made.examples))
    assert {(record.outcome, record.model) for record in records} == {("ok", MODEL)}
    assert len(records) == len(made.examples)
