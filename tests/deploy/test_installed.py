"""`pip install .` into an empty environment, and `uv tool install .`: all that the program needs comes along, and
`ollama-gateway demo` answers the call that it prints."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.no_tls import NO_TLS
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway_site", "proxy", "usage", "tenants", "templates", "static")
PATIENCE = 120

# Downloads may be slow; both tests together take a minute where they are not.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*words, **env):
    done = subprocess.run(words, capture_output=True, text=True, timeout=800, env={**os.environ, **env})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy: setuptools leaves what it builds in the source, and finds it there the next time."""
    copy = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def environment_of_a_stranger(home):
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONUNBUFFERED": "1"}


def test_installed_by_pip_the_demo_answers_the_call_that_it_prints(source, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "--no-compile", "--quiet", "--disable-pip-version-check", source)
    [site] = (tmp_path / "venv" / "lib").glob("*/site-packages")
    for name in PACKAGES:
        there = {path.relative_to(site) for path in (site / name).rglob("*") if "__pycache__" not in path.parts}
        wanted = {path.relative_to(source) for path in (source / name).rglob("*")}
        assert there == wanted

    home, port = tmp_path / "home", free_port()
    home.mkdir()
    # Names of ours in the current directory are not what is started.
    (home / "proxy.py").write_text("raise SystemExit('the wrong one')")
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(
            [python.with_name("ollama-gateway"), "demo", "--port", str(port)],
            cwd=home, env=environment_of_a_stranger(home), stdout=out, stderr=out,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while "Ctrl-C ends the demo." not in (said := (tmp_path / "out").read_text()):
            assert demo.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        words = shlex.split(re.search(r"curl .*?\n\n", said, re.DOTALL)[0].replace("\\\n", ""))
        assert [words[0], words[2], words[4]] == ["curl", "-H", "-d"]
        name, _, value = words[3].partition(": ")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=NO_TLS, timeout=60) as client:
            answer = client.post(words[1], headers={name: value}, content=words[5])
            assert answer.status_code == 200, answer.text
            assert answer.text.splitlines()[-1].startswith('{"model":"llama3.2"')
            assert '"done":true' in answer.text.splitlines()[-1]
            assert client.get("/static/gateway/gateway.css").status_code == 200
            assert "This is a demo" in client.get("/account/login/").text
        data = home / ".local" / "share" / "ollama-gateway" / "demo"
        assert (data / "demo.json").exists()
    finally:
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=PATIENCE) == 0
    assert {path.name for path in home.iterdir()} == {"proxy.py", ".local"}


def test_installed_by_uv_it_is_a_tool(source, tmp_path):
    uv = Path(sys.executable).with_name("uv")
    # What pip is told about where packages are, uv is told in its own words.
    places = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_FIND_LINKS": "UV_FIND_LINKS", "PIP_CERT": "SSL_CERT_FILE"}
    told = {theirs: os.environ[ours] for ours, theirs in places.items() if os.environ.get(ours)}
    tools = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    run(uv, "tool", "install", "--quiet", "--python", sys.executable, source, **told, **tools)
    gateway, stranger = tmp_path / "bin" / "ollama-gateway", environment_of_a_stranger(tmp_path)

    def says(*words):
        return subprocess.run(
            [gateway, *words], env=stranger, capture_output=True, text=True, timeout=PATIENCE, check=True
        )

    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert says("--version").stdout.strip() == version
    assert "ollama-gateway COMMAND" in says().stdout
    assert "no issues" in says("check").stdout
