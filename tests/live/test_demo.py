"""`manage.py demo`, from its start to Ctrl-C: what scripts rely on (design §10)."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time

import httpx
import pytest

from tests.live.gateway import ROOT
from tests.no_tls import NO_TLS
from tests.ports import free_port


@pytest.fixture
def demo(tmp_path):
    """(process, directory) of a demo that has said that it is ready."""
    port = free_port()
    env = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL", "SITE_URL")}
    env.update(DATA_DIR=str(tmp_path), PYTHONUNBUFFERED="1")
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "demo", "--port", str(port)], cwd=ROOT, env=env, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 100
        while not (tmp_path / "demo.json").exists():
            assert process.poll() is None, (tmp_path / "out").read_text()
            assert time.monotonic() < deadline, (tmp_path / "out").read_text()
            time.sleep(0.1)
        yield process, tmp_path
    finally:
        if process.poll() is None:
            process.terminate()  # it ends its children
            process.wait(timeout=60)


def test_the_demo_says_how_to_use_it_and_ends_with_ctrl_c(demo):
    process, directory = demo
    note = directory / "demo.json"
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    told = json.loads(note.read_text())
    assert set(told) == {"url", "admin", "keys", "backends"}
    with httpx.Client(base_url=told["url"], trust_env=False, verify=NO_TLS, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
        for key in told["keys"].values():
            answer = client.post(
                "/api/chat",
                headers={"authorization": f"Bearer {key}"},
                json={"model": "llama3.2", "messages": [], "stream": False},
            )
            assert answer.status_code == 200, answer.text
        # The pair of lines that it prints, as a shell takes them.
        pair = re.findall(r"(curl -si .+?)# x-cache: (\w+)", (directory / "out").read_text(), re.DOTALL)
        assert [verdict for _, verdict in pair] == ["MISS", "HIT"]
        for command, verdict in pair:
            ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
            assert ran.stdout.strip() == f"x-cache: {verdict}", ran.stderr
        page = client.get("/account/login/").text
        assert "This is a demo" in page
        form = {
            "login": told["admin"]["username"],
            "password": told["admin"]["password"],
            "csrfmiddlewaretoken": client.cookies["csrftoken"],
        }
        signed_in = client.post("/account/login/", data=form, headers={"referer": told["url"]})
        assert signed_in.headers["location"] == "/"
        home = client.get("/", headers={"accept": "text/html"}).text
        assert "Tokens, the last 30 days" in home
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert not note.exists()
    assert "The demo has ended." in (directory / "out").read_text()
