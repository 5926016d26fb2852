"""Row L6: unsafe settings are said before the first call, and those of docs/deployment.md are clean."""

import os
import re
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
from django.core.checks import run_checks

ROOT = Path(__file__).resolve().parents[2]
OIDC = {"openid_connect": {"APPS": [{"client_id": "gateway", "secret": ""}]}}
EVERYBODY = (ip_network("::/0"),)


def found(**options):
    return {message.id for message in run_checks(tags=["security"], **options) if message.id.startswith("gateway.")}


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("gateway.E001", {"SITE_URL": "llm.example"}),
        ("gateway.E001", {"SITE_URL": "https://"}),
        ("gateway.E002", {"REDIS_URL": "redis:6379"}),
        ("gateway.E003", {"OIDC_ISSUER": "https://login.example", "SOCIALACCOUNT_PROVIDERS": OIDC}),
        ("gateway.W001", {"TRUSTED_PROXIES": EVERYBODY}),
    ],
)
def test_l6_what_contradicts_itself_is_said_at_each_start(settings, code, changed):
    assert code not in found()
    for name, value in changed.items():
        setattr(settings, name, value)
    assert code in found()


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("gateway.I001", {"HTTPS": True}),
        ("gateway.W002", {"ALLOWED_HOSTS": ["*"]}),
        ("gateway.W003", {"METRICS_NETWORKS": EVERYBODY}),
        ("gateway.W004", {"CORS_ORIGINS": ("*",)}),
        ("gateway.W005", {"KEY_PEPPER": b"short"}),
        ("gateway.W006", {"DEMO": True}),
    ],
)
def test_l6_what_is_unsafe_for_others_is_said_by_check_deploy(settings, code, changed):
    assert code not in found(include_deployment_checks=True)
    for name, value in changed.items():
        setattr(settings, name, value)
    assert code in found(include_deployment_checks=True)
    assert code not in found()


def documented():
    """The variables that docs/deployment.md has one set behind a proxy."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if "`TRUSTED_PROXIES=" in line)
    return dict(pair.split("=", 1) for pair in re.findall(r"`([A-Z_]+=[^`]+)`", line))


@pytest.mark.parametrize("settings_of", ["proxy", "own TLS"])
def test_l6_the_documented_settings_pass_check_deploy(tmp_path, settings_of):
    given = documented()
    assert set(given) == {"SITE_URL", "ALLOWED_HOSTS", "TRUSTED_PROXIES"}
    if settings_of == "own TLS":
        del given["TRUSTED_PROXIES"]
    bare = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        cwd=ROOT, env={**bare, **given, "DATA_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
