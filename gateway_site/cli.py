"""The console script `ollama-gateway`: `serve` and the other commands of manage.py, and `run`, a small client.

`run`, `--help` and `--version` are for machines that have no gateway, too, so they must not load settings, which make
secrets and a data directory.
"""

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

from gateway_site import environment as env
from gateway_site.command_line import refused, run_command

DEFAULT_URL = "http://127.0.0.1:8080"
CONFIG = Path("~/.config/ollama-gateway")
# A large model loads from a slow disk within ten minutes.
TIMEOUT = httpx.Timeout(600, connect=10)
INTERRUPTED = 130

Message = dict[str, str]

# `ollama-gateway key create …` is `manage.py create_key …`.
ACTIONS = {
    "key": {"create": "create_key", "list": "list_keys", "revoke": "revoke_key"},
    "backend": {"add": "add_backend", "list": "list_backends", "disable": "disable_backend"},
}
USAGE = """\
ollama-gateway COMMAND [--help]

  demo                                a gateway with two fake Ollamas, to look at
  serve                               the gateway
  doctor                              what is wrong here, and how to mend it
  run MODEL [PROMPT]                  a question or a conversation, through a gateway
  key create|list|revoke              keys: create --tenant NAME --name WHAT-FOR
  backend add|list|disable            Ollama servers: add NAME URL
  create_admin NAME                   an account that may do everything
  create_tenant, create_user          teams, and people in them
  install_service                     starts the gateway with the machine

Started without anything else, serve prints a link that leads through the rest.
Data is kept in {data}; DATA_DIR chooses another place.
All commands: ollama-gateway help --commands
"""


class Refused(Exception):
    """Its text is the one line for the user."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Account:
    url: str
    key: str = field(repr=False)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done, 1: refused, 2: wrong usage, 130: interrupted."""
    try:
        return _done(sys.argv[1:] if arguments is None else arguments)
    except env.WrongSetting as exc:
        return refused(exc)


def _done(arguments: list[str]) -> int:
    if arguments in ([], ["help"], ["-h"], ["--help"]):
        print(USAGE.format(data=env.text("DATA_DIR") or env.data_home()), end="")
        return 0
    if arguments in (["--version"], ["version"]):
        print(version())
        return 0
    if arguments[0] == "run":
        parser = argparse.ArgumentParser(prog="ollama-gateway run", description=RUN_HELP)
        add_run_arguments(parser)
        return run(**vars(parser.parse_args(arguments[1:])))
    if actions := ACTIONS.get(arguments[0]):
        if arguments[1:2] == [] or arguments[1] not in actions:
            print(f"usage: ollama-gateway {arguments[0]} {'|'.join(actions)} …", file=sys.stderr)
            return 0 if arguments[1:] in (["-h"], ["--help"]) else 2
        arguments = [actions[arguments[1]], *arguments[2:]]
    if arguments[0] == "demo" and not env.text("DATA_DIR"):
        # Apart from the gateway that `serve` would run here next.
        os.environ["DATA_DIR"] = str(env.data_home().expanduser() / "demo")
    return run_command(["ollama-gateway", *arguments])


def version() -> str:
    try:
        return metadata.version("ollama-gateway")
    except metadata.PackageNotFoundError:
        return "not installed: it runs from its source"


RUN_HELP = (
    "Asks a model, through a gateway. Its address and the key come from OLLAMA_GATEWAY_URL and OLLAMA_GATEWAY_KEY, or "
    'from ~/.config/ollama-gateway (url = "…", key = "…").'
)

NO_KEY = 'This gateway wants an API key: set OLLAMA_GATEWAY_KEY, or write key = "ogw_…" into ~/.config/ollama-gateway.'


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="E.g. phi4.")
    parser.add_argument("prompt", nargs="*", help="Without one: standard input, or a conversation.")
    parser.add_argument("--url", default="", help="Of the gateway.")
    parser.add_argument("--pull", action="store_true", help="Pull the model without asking if it is missing.")


def run(*, model: str, prompt: list[str], url: str = "", pull: bool = False) -> int:
    try:
        account = account_of_user(url)
        headers = {"authorization": f"Bearer {account.key}"} if account.key else {}
        with httpx.Client(base_url=account.url, headers=headers, timeout=TIMEOUT) as client:
            conversation = Conversation(client, model, may_pull=pull)
            if prompt:
                conversation.say(" ".join(prompt))
            elif not sys.stdin.isatty():
                conversation.say(sys.stdin.read())
            else:
                conversation.hold()
    except Refused as exc:
        print(NO_KEY if exc.code == "missing_key" else exc, file=sys.stderr)
        return 1
    except httpx.InvalidURL as exc:
        print(f"The address of the gateway is no URL: {exc}.", file=sys.stderr)
        return 1
    except httpx.HTTPError as exc:
        reason = str(exc) or type(exc).__name__
        print(f"{account.url} does not answer ({reason}). Set OLLAMA_GATEWAY_URL, or use --url.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def account_of_user(url: str = "") -> Account:
    """Address and key: flag, environment, file. OLLAMA_API_KEY is the name that other clients use. Raises Refused."""
    file = _config_file()
    key = env.text("OLLAMA_GATEWAY_KEY") or env.text("OLLAMA_API_KEY") or str(file.get("key", ""))
    url = url or env.text("OLLAMA_GATEWAY_URL") or str(file.get("url", "")) or DEFAULT_URL
    if not (key.isascii() and key.isprintable()):
        raise Refused("The API key holds characters that no key has. Copy it again.")
    return Account(url if "://" in url else f"http://{url}", key.strip())


def _config_file() -> dict[str, Any]:
    path = CONFIG.expanduser()
    path = path / "config.toml" if path.is_dir() else path
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise Refused(f'{path} cannot be read ({exc}). Write: url = "http://gateway:8080" and key = "ogw_…"') from None


class Conversation:
    def __init__(self, client: httpx.Client, model: str, *, may_pull: bool = False) -> None:
        self.client = client
        self.model = model
        self.may_pull = may_pull
        self.messages: list[Message] = []

    def hold(self) -> None:
        """Until /bye or the end of input. Ctrl-C ends an answer, and at the prompt the conversation."""
        print(f"{self.model} at {self.client.base_url} — /bye ends.", file=sys.stderr)
        while True:
            try:
                text = input(">>> ").strip()
            except EOFError:
                print()
                return
            if text == "/bye":
                return
            if text:
                try:
                    self.say(text)
                except KeyboardInterrupt:
                    print()
                except Refused as exc:
                    print(exc, file=sys.stderr)

    def say(self, text: str) -> None:
        """Prints the answer as it comes; what was said stays in the conversation. Raises Refused, httpx.HTTPError."""
        said = [*self.messages, {"role": "user", "content": text}]
        try:
            answer = self._answer(said)
        except Refused as exc:
            if exc.code not in ("model_not_found", "404") or not self._pulled():
                raise
            answer = self._answer(said)
        self.messages = [*said, {"role": "assistant", "content": answer}]

    def _answer(self, messages: list[Message]) -> str:
        parts: list[str] = []
        for line in self._lines("/api/chat", {"model": self.model, "messages": messages}):
            message = line.get("message") or {}
            if thought := message.get("thinking"):
                _show(thought, sys.stderr)
            if content := message.get("content"):
                parts.append(content)
                _show(content, sys.stdout)
        print()
        return "".join(parts)

    def _pulled(self) -> bool:
        """Whether a missing model is there now. Asks first, unless that was answered on the command line."""
        if not self.may_pull:
            if not sys.stdin.isatty() or not self._key_may_pull():
                return False
            if input(f"{self.model} is not there. Pull it? [y/N] ").strip().lower() not in ("y", "yes"):
                return False
        status = ""
        for line in self._lines("/api/pull", {"model": self.model}):
            if line.get("status") != status:
                status = str(line.get("status"))
                print(_harmless(status), file=sys.stderr)
        return True

    def _key_may_pull(self) -> bool:
        """A gateway says what the key may; a bare Ollama, which does not know the question, lets everybody."""
        answer = self.client.get("manage/api/key")
        return answer.status_code != 200 or _object_of(answer.text).get("may_manage") is not False

    def _lines(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects of a stream. Raises Refused for an error, at its beginning or in its midst."""
        with self.client.stream("POST", path.lstrip("/"), json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                raise Refused(_error_of(answer), answer.headers.get("x-gateway-error") or str(answer.status_code))
            for line in answer.iter_lines():
                said = _object_of(line)
                if "error" in said:
                    raise Refused(_harmless(str(said["error"])))
                yield said


def _object_of(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line or "{}")
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise Refused("What answers there is no Ollama and no gateway in front of one. Check the address.")
    return said


def _error_of(answer: httpx.Response) -> str:
    try:
        text = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = answer.text[:500]
    return _harmless(text or f"The gateway answered {answer.status_code}.")


def _show(text: str, stream: Any) -> None:
    print(_harmless(text), end="", file=stream, flush=True)


def _harmless(text: str) -> str:
    """Without what would steer a terminal: a model says whatever it was told to say."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable() or char == "\u00a0")


if __name__ == "__main__":
    sys.exit(main())
