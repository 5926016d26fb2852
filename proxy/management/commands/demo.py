"""A gateway to look at: two fake Ollamas behind it, a key, a call that works."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection

from proxy import demo
from tenants.management.administration import Refused

START_SECONDS = 60.0


class Stopped(Exception):
    pass


class Command(BaseCommand):
    help = "Runs a gateway with two fake Ollamas on this machine, for a first look. Ctrl-C ends it."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--host",
            default="127.0.0.1",
            help="Address to listen on (default: %(default)s). Another in a container only.",
        )
        parser.add_argument("--port", type=int, default=settings.PORT, help="Port (default: %(default)s).")

    def handle(self, *, host: str, port: int, **options: Any) -> None:
        if connection.vendor != "sqlite":
            raise Refused("The demo has a SQLite database of its own. Unset DATABASE_URL to run it.")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
        note = settings.DATA_DIR / "demo.json"
        children: list[subprocess.Popen[str]] = []
        try:
            self._run(host, port, note, children)
        except (Stopped, KeyboardInterrupt):
            self.stdout.write("\nThe demo has ended.")
        finally:
            note.unlink(missing_ok=True)
            _end(children)

    def _run(self, host: str, port: int, note: Path, children: list[subprocess.Popen[str]]) -> None:
        call_command("migrate", verbosity=0)
        backends = [_fake_ollama(children) for _ in range(2)]
        try:
            made = demo.make(backends)
        except demo.NotADemo:
            raise Refused(
                f"{settings.DATA_DIR} holds an installation. Give the demo a directory of its own: DATA_DIR=…"
            ) from None
        connection.close()
        url = f"http://127.0.0.1:{port}"
        # What the pages print is this address, and that they show a demo.
        os.environ.update(SITE_URL=url, DEMO="True")
        children.append(_child("serve", "--host", host, "--port", str(port)))
        _wait_until_ready(url, children[-1])
        _write(note, {
            "url": url,
            "admin": {"username": demo.ADMIN, "password": made.password},
            "keys": made.keys,
            "backends": backends,
        })  # fmt: skip
        self._explain(url, made)
        code = children[-1].wait()
        raise Refused(f"The gateway ended by itself (exit code {code}).")

    def _explain(self, url: str, made: demo.Demo) -> None:
        key, cached = made.keys["app"], made.keys["cached"]
        twice = f"""curl -si {url}/api/generate -H "Authorization: Bearer {cached}" \\
    -d '{{"model": "llama3.2", "prompt": "What is 2+2?", "stream": false}}' | grep -i x-cache"""
        self.stdout.write(
            f"""
The gateway runs at {url}, in front of two fake Ollamas on this machine.

Sign in at {url}/ as "{demo.ADMIN}" with the password "{made.password}". The same password opens the accounts of
{_listed(name for name in demo.PEOPLE if name != demo.ADMIN)}, who see less.

A call that works:

  curl {url}/api/chat -H "Authorization: Bearer {key}" \\
    -d '{{"model": "llama3.2", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

The same call twice: the first is generated, the second comes from the cache.

  {twice}   # x-cache: MISS
  {twice}   # x-cache: HIT

Ctrl-C ends the demo.
"""
        )
        self.stdout.flush()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _child(*arguments: str) -> subprocess.Popen[str]:
    source = settings.BASE_DIR / "manage.py"
    # Installed, there is no manage.py. -P: not what lies in the current directory under one of our names.
    program = [str(source)] if source.exists() else ["-P", "-m", "gateway_site.cli"]
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, *program, *arguments],
        stdout=subprocess.PIPE if arguments[0] == "fake_ollama" else subprocess.DEVNULL,
        text=True,
        # Ctrl-C in a terminal goes to the whole group; the children are ended by us, in order.
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def _fake_ollama(children: list[subprocess.Popen[str]]) -> str:
    child = _child("fake_ollama", "--port", "0", "--models", demo.MODELS, "--slots", "4", "--tokens-per-second", "40")
    children.append(child)
    assert child.stdout is not None
    line = child.stdout.readline()
    if "http://" not in line:
        raise Refused("A fake Ollama did not start.")
    return line.split()[-1]


def _wait_until_ready(url: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise Refused("The gateway did not start; what it said is above.")
            try:
                if client.get(f"{url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise Refused(f"The gateway was not ready within {START_SECONDS:.0f} s.")


def _write(note: Path, content: dict[str, Any]) -> None:
    draft = note.with_suffix(".draft")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(content, indent=2), encoding="utf-8")
    draft.replace(note)


def _end(children: list[subprocess.Popen[str]]) -> None:
    for child in reversed(children):
        if child.poll() is None:
            child.terminate()
    for child in reversed(children):
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
