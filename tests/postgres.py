"""A real PostgreSQL 15 of one's own: from Debian's package, on a free port of loopback, gone afterwards."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg

from tests.ports import free_port

BINARIES = Path("/usr/lib/postgresql/15/bin")
PATIENCE = 60
# What a cluster of tests can do without: nobody pulls its plug.
OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=60")


class Cluster:
    """`pause()` makes it hang with its connections open (SIGSTOP), `stop()` makes it refuse connections."""

    def __init__(self) -> None:
        if not BINARIES.is_dir():
            raise RuntimeError("PostgreSQL 15 is missing: apt-get install postgresql-15")
        self.directory = Path(tempfile.mkdtemp(prefix="ogw-pg-", dir="/tmp"))
        self.port = free_port()
        self.process = None
        # initdb and postgres refuse to run as root.
        self.identity = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.directory, user.pw_uid, user.pw_gid)
            self.identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        subprocess.run(
            [
                BINARIES / "initdb", "--pgdata", self.directory / "data", "--username=postgres", "--auth=trust",
                "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
            ],
            check=True, capture_output=True, cwd=self.directory, **self.identity,
        )  # fmt: skip

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> "Cluster":
        with (self.directory / "data" / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    BINARIES / "postgres", "-D", self.directory / "data", "-p", str(self.port),
                    "-c", f"unix_socket_directories={self.directory}", "-c", "listen_addresses=127.0.0.1",
                    *(part for option in OPTIONS for part in ("-c", option)),
                ],
                stdout=log, stderr=log, cwd=self.directory, start_new_session=True, **self.identity,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "data" / "log").read_text()[-2000:]) from None
                time.sleep(0.02)
            else:
                return self

    def stop(self) -> None:
        """Cuts all connections; the data stays, for start()."""
        if self.process is None:
            return
        self.resume()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(PATIENCE)
        self.process = None

    def pause(self) -> None:
        # The parent first: what is stopped makes no more children.
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def create_database(self, name: str, template: str = "template1") -> str:
        """Its URL. A template must have no connections."""
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)

    def _processes(self) -> Iterator[psutil.Process]:
        """The parent, and then whichever children it has by then; some may end in the meantime."""
        if self.process is not None and self.process.poll() is None:
            parent = psutil.Process(self.process.pid)
            yield parent
            yield from parent.children(recursive=True)
