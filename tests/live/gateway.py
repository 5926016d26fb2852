"""A gateway as users have it: in a process of its own, on a database of its own, on each of its servers."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings
from django.core.management import call_command
from django.db import connections

from gateway_site.settings import database as database_settings
from proxy.models import Backend
from tenants.keys import digest, make_clear_text
from tenants.models import ApiKey, Tenant
from tests.no_tls import NO_TLS
from tests.ports import free_port
from usage.models import UsageRecord

ROOT = Path(__file__).resolve().parents[2]
PEPPER = "a pepper of the tests"
# How each is started; `manage.py serve` on uvicorn is what users have unless they choose otherwise.
SERVERS = ("uvicorn", "daphne", "bare-daphne", "runserver")


def use_database(alias: str, url: str) -> None:
    """Makes a database known to the ORM of the test process under an alias."""
    defaults = {name: value for name, value in settings.DATABASES["default"].items() if name != "OPTIONS"}
    entry = {**defaults, **database_settings(url), "TEST": {}}
    connections.databases[alias] = entry
    if alias in connections:
        connections[alias].close()
        del connections[alias]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Gateway:
    """`env`: further variables of the process. The database is migrated already (see conftest)."""

    def __init__(
        self, directory: Path, database_url: str, *, workers: int = 1, server: str = "uvicorn", **env: str
    ) -> None:
        assert server in SERVERS
        self.server = server
        self.directory = directory
        self.database_url = database_url
        self.workers = workers
        self.alias = f"live-{directory.name}"
        # Of `serve`, besides or instead of the port.
        self.arguments: list[str] = []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = directory / "gateway.log"
        self.env = {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in ("PORT", "REDIS_URL") and not name.startswith("OLLAMA_")
            },
            "DATA_DIR": str(directory),
            "DATABASE_URL": database_url,
            "KEY_PEPPER": PEPPER,
            "SECRET_KEY": "a secret of the tests that is long enough to be one",
            "PROBE_SECONDS": "0.2",
            "PYTHONUNBUFFERED": "1",
            # Tests ask until a key is known.
            "FAILED_CREDENTIALS_PER_MINUTE": "1000000",
            # Most tests of several workers are not about limits.
            "LIMITS_PER_WORKER": "True",
            "PYTHONWARNINGS": "default",
            **env,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._first_key = ""
        self._has_backends = False
        # Django keeps connections by context: that of a fixture does not see those of a test.
        self._connections: set[Any] = set()
        use_database(self.alias, database_url)

    # Life

    def start(self, *, wait: bool = True) -> "Gateway":
        """To be called off the loop that the fake lives in, which must answer the first probes."""
        assert not (wait and asyncio._get_running_loop()), "await asyncio.to_thread(gateway.start)"
        command = [sys.executable, *self.command()]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=log)
        if wait:
            self.wait_until_ready()
            self.wait_until_served()
        return self

    def command(self) -> list[str]:
        port = str(self.port)
        if self.server == "bare-daphne":
            return ["-m", "daphne", "-v", "0", "-b", "127.0.0.1", "-p", port, "gateway_site.asgi:application"]
        if self.server == "runserver":
            return ["manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
        own = [] if {"PORT", "OLLAMA_PROXY_PORT"} & self.env.keys() else ["--port", port]
        serve = ["manage.py", "serve", "--server", self.server, "--workers", str(self.workers)]
        return [*serve, *own, *self.arguments]

    def wait_until_ready(self, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            try:
                if httpx.get(f"{self.url}/readyz", trust_env=False, verify=NO_TLS).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready within {seconds} s\n{self.log()}")

    def wait_until_served(self, seconds: float = 5) -> None:
        """Where there are backends and a key that shows them, until the first probes have come back. On a busy
        machine a call could be sooner. A backend that is not to be reached is not waited for any longer."""
        deadline = time.monotonic() + seconds
        while self._first_key and self._has_backends and time.monotonic() < deadline:
            headers = {"Authorization": f"Bearer {self._first_key}"}
            try:
                answer = httpx.get(f"{self.url}/api/tags", headers=headers, trust_env=False, verify=NO_TLS)
            except httpx.HTTPError:
                return
            if answer.status_code != 200 or answer.json().get("models"):
                return
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(timeout=seconds)
        self.process = None
        return code

    def kill(self) -> None:
        """kill -9 of the parent and all its workers at once."""
        assert self.process is not None
        for pid in (self.process.pid, *self.worker_pids()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.process = None

    def worker_pids(self) -> list[int]:
        """The workers of a gateway that has several; none where one process does everything."""
        assert self.process is not None
        # Forked from a child of the parent; another child, which has none, watches what the two share.
        return [worker for child in _children(self.process.pid) for worker in _children(child)]

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def close(self) -> None:
        if self.process is not None:
            self.kill()
        for connection in self._connections:
            connection.close()

    # The control plane, as another process changes it

    @property
    def connection(self) -> Any:
        connection = connections[self.alias]
        self._connections.add(connection)
        return connection

    def rows(self, model: type[Any]) -> Any:
        self._connections.add(connections[self.alias])
        return model.objects.using(self.alias)

    def tenant(self, name: str = "acme") -> Tenant:
        return self.rows(Tenant).get_or_create(name=name)[0]

    def make_key(self, name: str = "key", tenant: str = "acme", **fields: Any) -> tuple[ApiKey, str]:
        """(row, clear text)"""
        prefix, clear_text = make_clear_text()
        secret = digest(clear_text.encode(), PEPPER.encode())
        row = self.rows(ApiKey).create(tenant=self.tenant(tenant), name=name, prefix=prefix, digest=secret, **fields)
        self._first_key = self._first_key or clear_text
        return row, clear_text

    def make_backend(self, url: str, name: str = "one", **fields: Any) -> Backend:
        self._has_backends = True
        return self.rows(Backend).create(name=name, url=url, **{"slots": 4, **fields})

    def records(self, **filters: Any) -> list[UsageRecord]:
        return list(self.rows(UsageRecord).filter(**filters).order_by("id"))

    async def record(self, request_id: str, seconds: float = 10) -> UsageRecord:
        """The record of a call, once the ledger has stored it."""
        return (await self.wait_for_records(1, seconds, id=request_id))[0]

    async def wait_for_records(self, count: int, seconds: float = 10, **filters: Any) -> list[UsageRecord]:
        deadline = time.monotonic() + seconds
        while len(found := self.records(**filters)) < count:
            assert time.monotonic() < deadline, (
                f"{len(found)} of {count} records after {seconds} s\n{self.log()[-3000:]}"
            )
            await asyncio.sleep(0.05)
        return found

    async def until_it_lists(self, *models: str, key: str = "", seconds: float = 60) -> "Gateway":
        """Waits until the probes have found models, however slow the machine is."""
        deadline = time.monotonic() + seconds
        # Each worker finds them, and hears of the key, by itself: so many connections in a row reach them all.
        needed = in_a_row = 1 if self.workers == 1 else 12 * self.workers
        while in_a_row:
            async with self.client(key) as client:
                answer = await client.get("/api/tags")
            listed = {item["name"] for item in answer.json()["models"]} if answer.status_code == 200 else set()
            if listed >= {name if ":" in name else f"{name}:latest" for name in models}:
                in_a_row -= 1
                continue
            assert time.monotonic() < deadline, f"{listed}\n{answer.text}\n{self.log()[-3000:]}"
            in_a_row = needed
            await asyncio.sleep(0.05)
        return self

    # The data plane, as apps call it

    def client(self, key: str = "", **options: Any) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, trust_env=False, verify=NO_TLS, timeout=30, **options
        )


def migrated_sqlite(path: Path) -> str:
    """A SQLite database with all tables; made once per session and copied from then on. Returns its URL."""
    url = f"sqlite:///{path}"
    use_database("live-template", url)
    call_command("migrate", database="live-template", verbosity=0)
    connections["live-template"].close()
    return url


def copied_sqlite(template: Path, target: Path) -> str:
    shutil.copy(template, target)
    return f"sqlite:///{target}"
