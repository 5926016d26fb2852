"""A real Redis of one's own: from Debian's package, on a free port of loopback, keeping nothing, gone afterwards."""

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import redis

from tests.ports import free_port

PATIENCE = 30


class RedisServer:
    """`kill()` makes it refuse connections, `pause()` makes it hang with them open (SIGSTOP)."""

    def __init__(self) -> None:
        self.binary = shutil.which("redis-server")
        if self.binary is None:
            raise RuntimeError("Redis is missing: apt-get install redis-server")
        self.directory = Path(tempfile.mkdtemp(prefix="ogw-redis-", dir="/tmp"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)

    def start(self) -> "RedisServer":
        log = self.directory / "log"
        self.process = subprocess.Popen(
            [
                self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", str(self.directory), "--logfile", str(log), "--daemonize", "no",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.client() as client:
                    client.ping()
            except redis.ConnectionError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(log.read_text()[-2000:] if log.exists() else "Redis did not start") from None
                time.sleep(0.02)
            else:
                return self

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def kill(self) -> None:
        """Everything that it held is lost; start() makes an empty one on the same port."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)
            self.process = None

    def subscribers(self) -> int:
        """Connections that listen to channels."""
        with self.client() as client:
            return sum("P" in row["flags"] for row in client.client_list())

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
