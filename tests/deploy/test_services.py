"""`install_service`: what it prints is what systemd and launchd read, and deploy/ has the same unit."""

import os
import plistlib
import shutil
import subprocess
import sys
from configparser import ConfigParser
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from gateway_site import services
from gateway_site.environment import data_home
from gateway_site.services import Service
from gateway_site.settings import GATEWAY
from proxy.management.commands import install_service

ROOT = Path(__file__).resolve().parents[2]
ODD = Service(["/opt/my tools/50% off/$gw"], Path("/srv/gate way"), "gateway", ["--port", "9000"])


def parsed(unit):
    """section → key → the last value; keys that stand twice are allowed."""
    parser = ConfigParser(strict=False, interpolation=None, delimiters="=")
    parser.optionxform = str
    parser.read_string(unit)
    return parser


def test_the_unit_of_deploy_is_what_the_command_prints():
    service = Service(["/opt/ollama-gateway/bin/ollama-gateway"], services.STATE / "ollama-gateway", "ollama-gateway")
    assert (ROOT / "deploy" / "ollama-gateway.service").read_text() == services.systemd(service)


@pytest.mark.parametrize("user", ["ollama-gateway", ""])
def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path, user):
    """As it is, with a program and a user that exist here."""
    service = Service([sys.executable, str(ROOT / "manage.py")], tmp_path / "50% of it", user and "daemon")
    unit = tmp_path / "ollama-gateway.service"
    unit.write_text(services.systemd(service))
    verify = [shutil.which("systemd-analyze"), "verify", "--man=no", *([] if user else ["--user"]), unit]
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    assert str(unit) not in done.stderr
    assert unit.name not in done.stderr


def test_the_drain_fits_into_the_time_that_systems_give():
    assert GATEWAY.drain_seconds + 10 < services.STOP_SECONDS
    assert parsed(services.systemd(ODD))["Service"]["TimeoutStopSec"] == str(services.STOP_SECONDS)


def test_odd_paths_stay_what_they_are():
    unit = parsed(services.systemd(ODD))["Service"]
    assert unit["ExecStart"] == '"/opt/my tools/50%% off/$$gw" serve --port 9000'
    assert unit["Environment"] == '"DATA_DIR=/srv/gate way"'
    assert unit["ReadWritePaths"] == '"/srv/gate way"'
    agent = plistlib.loads(services.launchd(ODD).encode())
    assert agent["ProgramArguments"] == ["/opt/my tools/50% off/$gw", "serve", "--port", "9000"]
    assert agent["EnvironmentVariables"] == {"DATA_DIR": "/srv/gate way"}
    assert agent["UserName"] == "gateway"
    task = services.windows(Service(["/opt/it's/gw"], Path("/srv/gate way")))
    assert """-Argument '--exec env "DATA_DIR=/srv/gate way" /opt/it''s/gw serve'""" in task


@pytest.mark.parametrize("system", ["systemd", "launchd", "windows"])
def test_printing_puts_nothing_anywhere(system, monkeypatch):
    monkeypatch.setattr(install_service, "_put", None)
    out = StringIO()
    call_command(
        "install_service", "--print", "--system", system, "--user", "somebody", "--", "--port", "9", stdout=out
    )
    assert "somebody" in out.getvalue()
    if system != "launchd":
        assert "serve --port 9" in out.getvalue()


def test_without_root_it_is_a_service_of_the_person(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    out = StringIO()
    call_command("install_service", "--system", "systemd", stdout=out)
    place = tmp_path / ".config/systemd/user/ollama-gateway.service"
    unit = parsed(place.read_text())["Service"]
    assert "User" not in unit
    assert unit["ExecStart"].endswith(" serve")
    assert "systemctl --user enable --now ollama-gateway" in out.getvalue()
    call_command("install_service", "--system", "systemd", stdout=out)  # the same again is no harm
    place.write_text("of somebody else")
    with pytest.raises(CommandError, match="says something else"):
        call_command("install_service", "--system", "systemd")
    assert place.read_text() == "of somebody else"
    with pytest.raises(CommandError, match="Only root"):
        call_command("install_service", "--user", "other")


def test_as_root_it_is_a_service_of_the_machine_with_a_user_of_its_own(monkeypatch, settings):
    """Whose data is not kept in the home of whoever installs it."""
    put, out = {}, StringIO()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(install_service, "_put", put.__setitem__)
    monkeypatch.setattr(services, "own_program", lambda source: ["/opt/gw/bin/ollama-gateway"])
    settings.DATA_DIR = data_home().expanduser().resolve()
    call_command("install_service", "--system", "systemd", stdout=out)
    [(place, text)] = put.items()
    unit = parsed(text)["Service"]
    assert place == Path("/etc/systemd/system/ollama-gateway.service")
    assert (unit["User"], unit["Environment"]) == ("ollama-gateway", "DATA_DIR=/var/lib/ollama-gateway")
    assert "useradd --system" in out.getvalue()
    call_command("install_service", "--system", "launchd", "--user", "daemon", stdout=out)
    assert Path("/Library/LaunchDaemons/ollama-gateway.serve.plist") in put
    settings.DATA_DIR = Path("/srv/gw")
    call_command("install_service", "--system", "systemd", "--user", "daemon", stdout=out)
    assert "ReadWritePaths=/srv/gw\n" in put[place]


def test_a_program_in_roots_home_is_not_for_others(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(services, "own_program", lambda source: ["/root/.local/bin/ollama-gateway"])
    err = StringIO()
    call_command("install_service", "--print", "--system", "systemd", stdout=StringIO(), stderr=err)
    assert "UV_TOOL_DIR" in err.getvalue()
