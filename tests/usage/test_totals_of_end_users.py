"""Migration 0010: days that were summed before end users had totals over all tenants get them."""

import importlib
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.db import connection

from tests.factories import make_key, make_tenant, make_usage
from usage.models import DailyTotal
from usage.rollups import END_USER, rebuild, reconcile

pytestmark = pytest.mark.usefixtures("database")


def test_days_of_before_are_filled():
    for tenant in ("acme", "other"):
        key = make_key(make_tenant(tenant)).row
        for label in ("", "one", "one", "two"):
            make_usage(key, end_user=label)
    rebuild()
    assert reconcile() == []
    DailyTotal.objects.filter(dimension=END_USER).delete()
    assert {difference.dimension for difference in reconcile()} == {END_USER}
    fill = importlib.import_module("usage.migrations.0010_fill_totals_of_end_users").fill
    fill(apps, SimpleNamespace(execute=connection.cursor().execute))
    assert reconcile() == []
    requests = DailyTotal.objects.filter(dimension=END_USER).values_list("value", "requests")
    assert sorted(requests) == [("one", 4), ("two", 2)]
