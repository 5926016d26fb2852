"""benchmarks/make_usage.py: what it makes by SQL is what the ledger would have made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connections

from tests.conftest import default_connection
from tests.live.gateway import copied_sqlite
from usage.models import DailyTotal, EndUserUsage, UsageRecord
from usage.rollups import reconcile

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request, tmp_path):
    """Of an empty database that is nobody else's."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return copied_sqlite(request.getfixturevalue("sqlite_template"), tmp_path / "usage.sqlite3")


def test_u11_the_invented_usage_of_benchmarks_agrees_with_its_sums(url, tmp_path, django_db_blocker):
    made = subprocess.run(
        [sys.executable, "benchmarks/make_usage.py", "--rows", "3000", "--days", "3", "--tenants", "2"],
        cwd=ROOT, env={**os.environ, "DATABASE_URL": url, "DATA_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("3,000 records in")
    assert "100.0 %" in made.stderr
    with django_db_blocker.unblock(), default_connection(url) as connection:
        assert reconcile() == []
        assert UsageRecord.objects.count() == 3000
        assert EndUserUsage.objects.exists()
        assert sum(DailyTotal.objects.filter(dimension="").values_list("requests", flat=True)) == 3000
        with connection.cursor() as cursor:
            there = set(connection.introspection.get_constraints(cursor, "usage_usagerecord"))
        assert {index.name for index in UsageRecord._meta.indexes} <= there
        connections["default"].close()
