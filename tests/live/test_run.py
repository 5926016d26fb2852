"""`ollama-gateway run` as a person uses it: at a terminal, against the fake Ollama (compat: run phi4)."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_asyncio

from gateway_site import cli
from proxy.fake_ollama import FakeOllama
from proxy.fake_ollama.names import parse_name

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ollama():
    async with FakeOllama(models=["phi4"], slots=2) as fake:
        fake.pullable.add(parse_name("mistral").key)
        yield fake


class Terminal:
    """The client at a terminal: what is typed goes to its standard input, what it says comes by a pipe."""

    def __init__(self, home, url, *arguments, **env):
        self.typed, inner = pty.openpty()
        env = {**os.environ, "HOME": str(home), "OLLAMA_GATEWAY_URL": url, "PYTHONUNBUFFERED": "1", **env}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway_site.cli", "run", *arguments],
            cwd=ROOT, env=env, stdin=inner, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(inner)
        self.said = b""

    def hears(self, text):
        """Waits until something is said; returns all that was said since the last time."""
        before = len(self.said)
        while text.encode() not in self.said[before:]:
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, self.said
            self.said += piece
        return self.said[before:].decode()

    def types(self, line):
        os.write(self.typed, line.encode() + b"\n")

    def ends(self):
        rest = self.process.communicate(timeout=PATIENCE)[0]
        os.close(self.typed)
        return self.process.returncode, (self.said + rest).decode()


async def test_a_conversation_remembers_what_was_said(ollama, tmp_path):
    def talk():
        terminal = Terminal(tmp_path, ollama.url, "phi4")
        terminal.hears(">>> ")
        terminal.types("My name is Ann.")
        terminal.hears("\n>>> ")
        terminal.types("What is my name?")
        terminal.hears("\n>>> ")
        terminal.types("/bye")
        return terminal.ends()

    code, _ = await asyncio.to_thread(talk)
    assert code == 0
    asked = [json.loads(call.body)["messages"] for call in ollama.calls if call.path == "/api/chat"]
    assert [message["role"] for message in asked[-1]] == ["user", "assistant", "user"]
    assert asked[-1][0]["content"] == "My name is Ann."
    assert asked[-1][1]["content"]


async def test_a_missing_model_is_pulled_if_the_user_says_so(ollama, tmp_path):
    def refuse():
        terminal = Terminal(tmp_path, ollama.url, "mistral", "hi")
        terminal.hears("Pull it? [y/N] ")
        terminal.types("n")
        return terminal.ends()

    def agree():
        terminal = Terminal(tmp_path, ollama.url, "mistral", "hi")
        terminal.hears("Pull it? [y/N] ")
        terminal.types("y")
        return terminal.ends()

    code, said = await asyncio.to_thread(refuse)
    assert code == 1
    assert "model 'mistral' not found" in said
    assert not [call for call in ollama.calls if call.path == "/api/pull"]
    code, said = await asyncio.to_thread(agree)
    assert (code, "success" in said) == (0, True), said


async def test_pulling_is_offered_to_keys_that_may(make_gateway, ollama, tmp_path):
    gateway = make_gateway()
    gateway.make_backend(ollama.url)
    keys = {may: gateway.make_key(f"may manage: {may}", may_manage=may)[1] for may in (True, False)}
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("phi4", key=keys[True])

    def ask(key):
        terminal = Terminal(tmp_path, gateway.url, "absent-model", "hi", OLLAMA_GATEWAY_KEY=key)
        terminal.types("n")
        return terminal.ends()

    code, said = await asyncio.to_thread(ask, keys[True])
    assert (code, "Pull it? [y/N]" in said) == (1, True), said
    code, said = await asyncio.to_thread(ask, keys[False])
    assert (code, "Pull it?" in said) == (1, False), said
    assert "absent-model" in said
    code, said = await asyncio.to_thread(ask, "")
    assert (code, "set OLLAMA_GATEWAY_KEY" in said) == (1, True), said


async def test_l7_the_key_is_in_no_process_list(ollama, tmp_path):
    """It comes from the environment or a file; no argument takes one."""
    key = "canary-of-a-key"

    def look():
        terminal = Terminal(tmp_path, ollama.url, "phi4", OLLAMA_GATEWAY_KEY=key)
        terminal.hears(">>> ")
        command = Path(f"/proc/{terminal.process.pid}/cmdline").read_bytes()
        terminal.types("/bye")
        return command, terminal.ends()

    command, (code, said) = await asyncio.to_thread(look)
    assert b"phi4" in command
    assert key.encode() not in command
    assert (code, key in said) == (0, False)
    with pytest.raises(SystemExit):
        cli.main(["run", "--key", key, "phi4"])


async def test_l7_the_key_is_shown_nowhere_and_odd_files_are_one_clear_line(tmp_path, monkeypatch, capsys):
    for name in ("OLLAMA_GATEWAY_URL", "OLLAMA_GATEWAY_KEY", "OLLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / ".config" / "ollama-gateway"
    config.mkdir(parents=True)
    (config / "config.toml").write_text('url = "http://gateway:9"\nkey = "secret-key"\n')
    account = cli.account_of_user()
    assert (account.url, account.key) == ("http://gateway:9", "secret-key")
    assert "secret-key" not in repr(account)
    assert cli.account_of_user("gw:1").url == "http://gw:1"
    monkeypatch.setenv("OLLAMA_API_KEY", "other")
    assert cli.account_of_user().key == "other"
    monkeypatch.setenv("OLLAMA_GATEWAY_KEY", "first")
    assert cli.account_of_user().key == "first"
    for text in ("not toml", 'key = "ä"'):
        monkeypatch.delenv("OLLAMA_API_KEY", raising=False)
        monkeypatch.delenv("OLLAMA_GATEWAY_KEY", raising=False)
        (config / "config.toml").write_text(text)
        assert cli.run(model="m", prompt=["hi"]) == 1
        assert capsys.readouterr().err.count("\n") == 1


async def test_t11_what_a_model_says_does_not_steer_the_terminal(ollama, capsys):
    assert cli._harmless("a\x1b[2J\x9b31mb\nc\td\u202ee é 漢") == "a[2J31mb\nc\tde é 漢"
