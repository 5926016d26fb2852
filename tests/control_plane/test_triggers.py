"""The database itself announces what changed, whoever changed it (design §4, threat A7)."""

import time

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection, models, transaction
from django.db.models.signals import post_migrate
from django.urls import reverse

from gateway_site.doctor import Level
from gateway_site.doctor.stores import look_at_database
from proxy import triggers
from proxy.models import ConfigRevision, ModelAlias, ModelPolicy
from tenants.models import ApiKey, Tenant, User
from tests.factories import (
    PASSWORD,
    make_admin,
    make_backend,
    make_ip_rule,
    make_key,
    make_limit,
    make_price,
    make_tenant,
    make_user,
)

pytestmark = pytest.mark.usefixtures("database")


def revisions():
    return dict(ConfigRevision.objects.values_list("table", "revision"))


def changed_by(action):
    """The tables whose revision an action raised."""
    before = revisions()
    action()
    after = revisions()
    assert all(after[table] >= number for table, number in before.items())
    return {table for table, number in after.items() if before.get(table) != number}


@pytest.mark.parametrize(
    ("make", "table"),
    [
        (make_tenant, "tenants_tenant"),
        (make_user, "tenants_user"),
        (make_ip_rule, "tenants_iprule"),
        (make_limit, "tenants_limit"),
        (make_backend, "proxy_backend"),
        (make_price, "usage_price"),
        (lambda: ModelAlias.objects.create(pattern="a", model="b"), "proxy_modelalias"),
        (lambda: ModelPolicy.objects.create(pattern="a"), "proxy_modelpolicy"),
    ],
)
def test_insert_update_and_delete_are_announced(make, table):
    assert changed_by(make) == {table}
    rows = apps.get_model(*table.split("_")).objects
    # To the value it has: whether a value changed is not the database's business.
    column = {"tenants_user": "is_active"}.get(table, "created_at")
    assert changed_by(lambda: rows.update(**{column: models.F(column)})) == {table}
    assert changed_by(lambda: rows.all().delete()) == {table}


def test_each_change_raises_the_number():
    tenant = make_tenant()
    seen = [revisions()["tenants_tenant"]]
    for _ in range(5):
        Tenant.objects.filter(pk=tenant.pk).update(enabled=models.Q(enabled=False))
        seen.append(revisions()["tenants_tenant"])
    assert seen == sorted(set(seen))


def test_a_change_in_the_admin_is_announced(client):
    tenant = make_tenant("acme")
    client.force_login(make_admin())
    url = reverse("admin:tenants_tenant_change", args=[tenant.pk])
    form = {
        "name": "acme",
        "confirmed": "on",
        "latency_class": "interactive",
        "weight": "100",
        "cache_scope": "tenant",
        "memberships-TOTAL_FORMS": "0",
        "memberships-INITIAL_FORMS": "0",
    }
    assert "tenants_tenant" in changed_by(lambda: client.post(url, form))
    tenant.refresh_from_db()
    assert not tenant.enabled


def test_raw_sql_is_announced():
    row = make_key().row

    def disable():
        with connection.cursor() as cursor:
            cursor.execute("UPDATE tenants_apikey SET enabled = %s WHERE id = %s", [False, row.pk])

    assert changed_by(disable) == {"tenants_apikey"}


def test_bulk_changes_are_announced_once():
    tenant = make_tenant()

    def create_many():
        ApiKey.objects.bulk_create(
            ApiKey(tenant=tenant, name="k", prefix=f"p{number}", digest=number.to_bytes(32)) for number in range(300)
        )

    assert changed_by(create_many) == {"tenants_apikey"}
    before = revisions()["tenants_apikey"]
    assert changed_by(lambda: ApiKey.objects.update(enabled=False)) == {"tenants_apikey"}
    if connection.vendor == "postgresql":
        # Milliseconds may have passed, but 300 rows did not count one by one.
        assert revisions()["tenants_apikey"] > before


def test_truncate_is_announced(database):
    make_price()
    if database == "sqlite":
        assert changed_by(lambda: connection.cursor().execute("DELETE FROM usage_price").close()) == {"usage_price"}
        return

    def truncate():
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE usage_price")

    assert changed_by(truncate) == {"usage_price"}


def test_what_is_rolled_back_is_not_announced():
    def fail():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            make_tenant()
            raise ZeroDivisionError

    assert changed_by(fail) == set()


def test_a_sign_in_is_not_announced(client):
    make_admin("root", password=PASSWORD)

    def sign_in():
        assert client.login(username="root", password=PASSWORD)

    assert changed_by(sign_in) == set()
    assert User.objects.get().last_login


def test_the_use_of_a_key_is_not_announced():
    from tenants.models import ApiKeyLastUsed
    from tests.factories import NOON

    row = make_key().row
    assert changed_by(lambda: ApiKeyLastUsed.objects.create(key=row, at=NOON)) == set()


def test_an_emptied_table_of_revisions_goes_on_announcing_with_numbers_never_seen():
    make_tenant()
    before = revisions()["tenants_tenant"]
    ConfigRevision.objects.all().delete()
    time.sleep(0.01)  # a new row begins with the clock's milliseconds
    make_tenant()
    assert revisions()["tenants_tenant"] > before


def test_writers_do_not_wait_for_each_other_on_postgresql(database, postgres):
    """Deferred to the commit: an open transaction that changed rules holds no lock on the revisions."""
    if database == "sqlite":
        return  # which has one writer anyway
    import psycopg

    make_tenant("a")
    make_tenant("b")
    url = connection.get_connection_params()
    another = psycopg.connect(postgres.url_of(url["dbname"]), options="-c lock_timeout=2000")
    with another, transaction.atomic():
        Tenant.objects.filter(name="a").update(enabled=False)
        another.execute("UPDATE tenants_tenant SET enabled = false WHERE name = 'b'")
        another.commit()


def test_triggers_survive_a_migration_that_rebuilds_the_table():
    old = Tenant._meta.get_field("name")
    new = models.CharField(max_length=120, unique=True)
    new.set_attributes_from_name("name")
    new.model = Tenant
    with connection.schema_editor() as editor:
        editor.alter_field(Tenant, old, new, strict=False)
    if connection.vendor == "sqlite":
        assert triggers.missing(), "SQLite has begun to keep triggers: install_after_migrate is not needed any more"
    config = apps.get_app_config("proxy")
    post_migrate.send(config, app_config=config, verbosity=0, interactive=False, using="default", plan=[], apps=apps)
    assert triggers.missing() == []
    assert changed_by(make_tenant) == {"tenants_tenant"}
    with connection.schema_editor() as editor:
        editor.alter_field(Tenant, new, old, strict=False)
    triggers.install()


def test_migrate_puts_a_missing_trigger_back():
    name = next(iter(_all_triggers()))
    _drop(name)
    assert triggers.missing() == [name]
    call_command("migrate", verbosity=0)
    assert triggers.missing() == []


def test_a_missing_trigger_is_an_error_of_the_system_check():
    assert run_checks(databases=["default"]) == []
    name = next(iter(_all_triggers()))
    _drop(name)
    (error,) = run_checks(databases=["default"])
    assert error.id == "proxy.E001"
    assert name in error.msg
    triggers.install()


def test_a_disabled_trigger_counts_as_missing(database):
    if database == "sqlite":
        return  # which cannot disable them
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE tenants_tenant DISABLE TRIGGER ogw_tenants_tenant_change")
    assert triggers.missing() == ["ogw_tenants_tenant_change"]


def _all_triggers():
    if connection.vendor == "postgresql":
        return {"ogw_tenants_apikey_change": "tenants_apikey"}
    return {"ogw_tenants_apikey_update": "tenants_apikey"}


def _drop(name):
    table = f" ON {_all_triggers()[name]}" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TRIGGER {name}{table}")


def test_the_doctor_finds_either_database_well():
    [found] = look_at_database()
    assert found.level is Level.OK, found
    assert found.text.startswith({"sqlite": "SQLite 3.", "postgresql": "PostgreSQL 1"}[connection.vendor])
