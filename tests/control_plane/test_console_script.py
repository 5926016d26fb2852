"""The console script `ollama-gateway`: its own words for commands of manage.py, and what it does without settings."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands

from gateway_site import cli
from gateway_site import environment as env
from tenants.models import ApiKey
from tests.control_plane.test_commands import run, run_json
from tests.factories import make_backend, make_key


@pytest.fixture
def django_is_asked(monkeypatch):
    """What was handed to Django's command line, and which directory was meant."""
    seen = {}
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(
        "django.core.management.execute_from_command_line",
        lambda words: seen.update(words=words, directory=env.text("DATA_DIR")),
    )
    return seen


def test_without_arguments_it_says_what_there_is_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    for arguments in ([], ["help"], ["-h"], ["--help"]):
        assert cli.main(arguments) == 0
        assert str(tmp_path / "data") in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert not (tmp_path / "data").exists()


def test_every_command_it_names_exists():
    named = set(re.findall(r"^  (\w+)", cli.USAGE, re.MULTILINE)) | set(re.findall(r"create_\w+", cli.USAGE))
    there = set(get_commands())
    assert named - set(cli.ACTIONS) <= there
    for actions in cli.ACTIONS.values():
        assert set(actions.values()) <= there


def test_key_and_backend_are_the_commands_of_manage_py(django_is_asked):
    assert cli.main(["key", "create", "--tenant", "acme", "--name", "laptop"]) == 0
    assert django_is_asked["words"] == ["ollama-gateway", "create_key", "--tenant", "acme", "--name", "laptop"]
    cli.main(["backend", "add", "gpu1", "http://10.0.0.5:11434"])
    assert django_is_asked["words"][1:] == ["add_backend", "gpu1", "http://10.0.0.5:11434"]
    cli.main(["help", "--commands"])
    assert django_is_asked["words"][1:] == ["help", "--commands"]


@pytest.mark.parametrize("arguments", [["key"], ["key", "make"], ["backend", "--name"]])
def test_an_unknown_action_is_wrong_usage(arguments, capsys):
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"usage: ollama-gateway {arguments[0]} ")


def test_installed_as_a_tool_data_is_the_users_and_the_demos_is_apart(tmp_path, monkeypatch, django_is_asked):
    monkeypatch.setattr(env, "__file__", str(tmp_path / "lib" / "gateway_site" / "environment.py"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert env.data_home() == Path("~/.local/share/ollama-gateway")
    cli.main(["serve"])
    assert django_is_asked["directory"] == ""
    cli.main(["demo", "--port", "1"])
    assert django_is_asked["directory"] == str(tmp_path / ".local/share/ollama-gateway/demo")


@pytest.mark.django_db
def test_keys_are_listed_by_prefix_and_never_whole(acme, other):
    made = make_key(acme, name="app\x1b[2J")
    make_key(other, name="theirs")
    gone = make_key(acme, name="gone").row
    gone.revoke()
    said = run("list_keys --tenant acme")
    assert said == f"{made.row.prefix} active acme: app\\x1b[2J"
    assert made.clear_text not in said
    assert gone.prefix in run("list_keys --all")
    assert gone.prefix not in run("list_keys")
    assert [key["tenant"] for key in run_json("list_keys")["keys"]] == ["acme", "other"]
    ApiKey.objects.all().revoke()
    assert "create_key" in run("list_keys")


@pytest.mark.django_db
def test_backends_are_listed_with_what_is_known_of_them():
    assert "add_backend" in run("list_backends")
    make_backend("gpu1", "http://10.0.0.5:11434", slots=2)
    make_backend("gpu2", "http://10.0.0.6:11434", enabled=False)
    assert run("list_backends").splitlines() == [
        "gpu1 http://10.0.0.5:11434 2 slots unknown No running worker has reported on it lately.",
        "gpu2 http://10.0.0.6:11434 1 slots drained Switched off: it gets no new calls.",
    ]
    assert json.dumps(run_json("list_backends")["backends"][0]["slots"]) == "2"


WRONG = [
    ("PORT", "abc", "serve"),
    ("CACHE_POLICY", "foo", "migrate"),
    ("DEBUG", "yes", "list_keys"),
    ("TIME_ZONE", "Europe/Nowhere", "doctor"),
    ("BACKEND_CONNECT_SECONDS", "0", "serve"),
    ("DATABASE_URL", "mail://user:secret@host", "check"),
    ("SITE_URL", "http://[::1", "list_backends"),
    ("DATA_DIR", "/proc/nowhere", "create_admin"),
]
SCRIPT = "import sys; from gateway_site import cli; sys.exit(cli.main(sys.argv[1:]))"


@pytest.mark.parametrize("program", [["manage.py"], ["-c", SCRIPT]], ids=["manage.py", "ollama-gateway"])
@pytest.mark.parametrize(("name", "value", "command"), WRONG)
def test_a_setting_that_cannot_be_is_one_line_whatever_the_command(program, name, value, command, tmp_path):
    environment = {**os.environ, "DATA_DIR": str(tmp_path), name: value}
    words = [sys.executable, *program, command]
    done = subprocess.run(
        words, cwd=settings.BASE_DIR, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"Refused: {name}\b.*\n", done.stderr), done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("OLLAMA_GATEWAY_KEY", ["run", "phi4", "Hi"]), ("DATA_DIR", ["help"]), ("DATA_DIR", ["demo"])],
)
def test_nor_is_it_a_traceback_where_no_settings_are_read(name, arguments, monkeypatch, capsys):
    monkeypatch.setenv(f"{name}_FILE", "/nowhere/file")
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"Refused: {name}_FILE='/nowhere/file': No such file or directory\n"


def test_a_mistake_of_our_own_keeps_its_traceback(monkeypatch):
    def broken(words):
        raise ImproperlyConfigured("of a library")

    monkeypatch.setattr("django.core.management.execute_from_command_line", broken)
    with pytest.raises(ImproperlyConfigured, match="of a library"):
        cli.main(["serve"])
