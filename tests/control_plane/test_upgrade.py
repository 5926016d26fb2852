"""An installation that exists is brought up to date by `manage.py migrate`, whatever its database lacks before."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import call_command

from proxy import triggers
from tests.conftest import default_connection

ROOT = Path(__file__).parent.parent.parent


def migrate(url, directory, *arguments):
    return subprocess.run(
        [sys.executable, "manage.py", "migrate", *arguments],
        cwd=ROOT, env={**os.environ, "DATABASE_URL": url, "DATA_DIR": str(directory)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def database(tmp_path, django_db_blocker):
    path = tmp_path / "old.sqlite3"
    with django_db_blocker.unblock(), default_connection(f"sqlite:///{path}"):
        call_command("migrate", verbosity=0)
        call_command("migrate", "proxy", "0010", verbosity=0)  # before tables with triggers of their own came
    return path


def test_s8_an_older_database_is_migrated_and_gets_all_triggers(database, tmp_path, django_db_blocker):
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TRIGGER ogw_tenants_apikey_update")
    connection.close()
    done = migrate(f"sqlite:///{database}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0011" in done.stdout
    with django_db_blocker.unblock(), default_connection(f"sqlite:///{database}"):
        assert triggers.missing() == []
