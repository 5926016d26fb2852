"""Migrated databases of either kind, for gateways that are tried out."""

from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Self

from django.core.management import call_command
from django.db import connections

from tests.live.gateway import copied_sqlite, migrated_sqlite, use_database
from tests.postgres import Cluster

TEMPLATE = "template_of_benchmarks"


class Databases:
    """A PostgreSQL server is started when the first database on it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cluster: Cluster | None = None
        self._numbers = count(1)
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.close()

    def new(self, kind: str) -> str:
        """The URL of a new one."""
        name = f"database{next(self._numbers)}"
        if kind == "postgresql":
            return self._server().create_database(name, TEMPLATE)
        template = self.directory / "template.sqlite3"
        if not template.exists():
            migrated_sqlite(template)
        return copied_sqlite(template, self.directory / f"{name}.sqlite3")

    def _server(self) -> Cluster:
        if self.cluster is None:
            self.cluster = Cluster()
            self._ending.callback(self.cluster.remove)
            self.cluster.start()
            use_database(TEMPLATE, self.cluster.create_database(TEMPLATE))
            call_command("migrate", database=TEMPLATE, verbosity=0)
            connections[TEMPLATE].close()
        return self.cluster
