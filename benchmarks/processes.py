"""The processes that are measured, and how: CPU nanoseconds from the scheduler, which do not depend on the clock."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import django
import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["DATA_DIR"] = tempfile.mkdtemp(prefix="ollama-gateway-bench-")
os.environ["DJANGO_SETTINGS_MODULE"] = "gateway_site.settings"
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
django.setup()
from tests.live.gateway import Gateway, migrated_sqlite  # noqa: E402
from tests.ports import free_port  # noqa: E402


def cpu_ns(pids: list[int]) -> int:
    """CPU time of processes and all their threads, nanoseconds. Ended threads are counted by /proc/PID/stat only."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total


# Seconds in which the ledger has stored the last records of a load (proxy/ledger/ledger.py): part of what calls cost.
STORED_SECONDS = 1.3


def cost(
    pids: Callable[[], list[int]], work: Callable[[], None], units: int, settling: float = STORED_SECONDS
) -> float:
    """CPU microseconds per unit of work. `settling`: seconds for which is looked on afterwards; what the processes do
    at rest in that time does not count."""
    resting = settling * _at_rest(tuple(pids())) if settling else 0.0
    before = cpu_ns(pids())
    work()
    time.sleep(settling)
    return (cpu_ns(pids()) - before - resting) / units / 1000


@cache
def _at_rest(pids: tuple[int, ...], seconds: float = 5.0) -> float:
    """CPU nanoseconds a second of processes that have nothing to do."""
    time.sleep(STORED_SECONDS)
    before = cpu_ns(list(pids))
    time.sleep(seconds)
    return (cpu_ns(list(pids)) - before) / seconds


def rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


class Fake:
    """The fake Ollama in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "proxy.fake_ollama", "--port", "0", "--no-log-bodies", *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def fault(self, **fields: object) -> None:
        httpx.post(f"{self.url}/_fake/faults", json=fields).raise_for_status()

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class Nginx:
    """A plain proxy: no key, no record, no buffering of answers."""

    def __init__(self, backend: str, directory: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = directory / "nginx.conf"
        config.write_text(f"""
worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log {directory}/nginx-error.log; user root;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; client_body_temp_path {directory}; proxy_temp_path {directory};
  fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};
  client_body_buffer_size 64k; client_max_body_size 20m;
  upstream backend {{ server {backend.removeprefix("http://")}; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{self.port};
    location / {{
      proxy_pass http://backend; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; proxy_set_header Host localhost;
    }}
  }}
}}
""")
        self.process = subprocess.Popen(["nginx", "-c", str(config), "-e", str(directory / "nginx-error.log")])
        _wait_for(self.url)

    @property
    def pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def make_gateway(
    backend: str, directory: Path, slots: int = 4096, *, server: str = "uvicorn", transport: str = "wire", **env: str
) -> tuple[Gateway, str, float]:
    """(started gateway, key, seconds from its start until it was ready)"""
    directory.mkdir()
    url = migrated_sqlite(directory / "gateway.sqlite3")
    gateway = Gateway(directory, url, server=server, PROBE_SECONDS="2", **env)
    gateway.make_backend(backend, slots=slots, transport=transport)
    _, key = gateway.make_key()
    began = time.monotonic()
    gateway.start()
    return gateway, key, time.monotonic() - began


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"{url} does not answer")


def body(stream: bool, tokens: int, padding: int = 0) -> bytes:
    """A chat of about 200 bytes, or of so many more."""
    text = "Why is the sky blue? " * 3 + "x" * padding
    return json.dumps({
        "model": "llama3.2",
        "stream": stream,
        "messages": [{"role": "user", "content": text}],
        "options": {"num_predict": tokens, "seed": 1},
    }).encode()  # fmt: skip
