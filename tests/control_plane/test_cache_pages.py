"""The cache in the admin and at the shell: what is kept, what it saved, throwing it away."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError
from django.urls import reverse
from django.utils import timezone

from proxy.cache.policy import Purges, Settings
from proxy.models import CachePurge, CacheUse, WorkerReport
from proxy.rules_watch import tables_now
from proxy.worker_reports import WorkerReports
from tenants.models import ApiKey, Tenant
from tests.factories import make_key, make_tenant, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss(client):
    user = make_user("boss", is_staff=True, is_superuser=True)
    client.force_login(user)
    return client


def use(tenant, days_ago=0, **counts):
    day = datetime.now(UTC).date() - timedelta(days=days_ago)
    return CacheUse.objects.create(day=day, tenant=tenant, **counts)


def test_the_page_says_what_is_kept_and_what_it_saved(boss):
    tenant = make_tenant("acme")
    use(tenant, hits=6, misses=3, coalesced=1, bypassed=5, saved_gpu_us=90_000_000, saved_tokens=1234)
    use(tenant, days_ago=29, misses=10)
    use(tenant, days_ago=31, misses=1000)
    kept = {"entries": 42, "bytes": 5 << 20, "max_bytes": 64 << 20, "evictions": 7, "flights": 1, "redis": "shared"}
    WorkerReport.objects.create(
        host="box", pid=1, revision=0, cache=kept, started_at=timezone.now(), seen_at=timezone.now()
    )
    page = boss.get(reverse("admin:proxy_cacheuse_changelist")).content.decode()
    for said in ("70.0 %", "35.0 %", "90 s", "1,234 tokens", "42", "64.0", "box 1", "shared"):
        assert said in page, said


def test_without_anything_kept_the_page_says_what_to_do(boss):
    page = boss.get(reverse("admin:proxy_cacheuse_changelist")).content.decode()
    assert "Choose a policy" in page
    assert "No worker has reported" in page


def test_a_purge_in_the_admin_is_a_rule_at_once(boss):
    tenant = make_tenant("acme")
    add = reverse("admin:proxy_cachepurge_add")
    boss.post(add, {"tenant": tenant.pk, "model": ""})
    boss.post(add, {"tenant": "", "model": "Qwen3"})
    question = boss.post(add, {"tenant": "", "model": ""}).content.decode()
    assert "all answers that are kept for anybody are thrown away" in question
    assert CachePurge.objects.count() == 2
    boss.post(add, {"tenant": "", "model": "", "confirmed": "on"})
    one, two, three = CachePurge.objects.order_by("id").values_list("id", flat=True)
    assert tables_now("UTC").purges == Purges(three, {tenant.pk: one}, {"qwen3:latest": two})
    assert set(CachePurge.objects.values_list("by", flat=True)) == {"boss"}
    both = boss.post(add, {"tenant": tenant.pk, "model": "qwen3"})
    assert "not both" in both.content.decode()
    odd = boss.post(add, {"tenant": "", "model": "no name!"})
    assert "name of one model" in odd.content.decode()
    assert CachePurge.objects.count() == 3
    assert "of acme" in boss.get(reverse("admin:proxy_cachepurge_changelist")).content.decode()


def test_tenants_are_purged_from_the_list_by_whoever_may(boss, client):
    rows = [use(make_tenant(name), hits=1) for name in ("one", "two", "three")]
    page = reverse("admin:proxy_cacheuse_changelist")
    form = {"action": "purge", "_selected_action": [row.pk for row in rows[:2]]}
    assert "Throw away the kept answers" in boss.post(page, form).content.decode()
    assert not CachePurge.objects.exists()
    boss.post(page, {**form, "confirmed": "1"})
    assert {purge.tenant.name for purge in CachePurge.objects.all()} == {"one", "two"}
    charlie = make_user("charlie", is_staff=True)
    charlie.user_permissions.add(Permission.objects.get(codename="view_cacheuse"))
    client.force_login(charlie)
    assert "Throw away" not in client.get(page).content.decode()
    client.post(page, {**form, "confirmed": "1"})
    assert CachePurge.objects.count() == 2


def test_the_settings_are_one_row_and_rules_at_once(boss):
    assert tables_now("UTC").cache_settings == Settings()
    add = reverse("admin:proxy_cachesettings_add")
    boss.post(add, {"policy": "all", "ttl_seconds": "60", "charges": "on"})
    assert tables_now("UTC").cache_settings == Settings("all", 60, charges=True)
    assert boss.get(add).status_code == 403
    change = reverse("admin:proxy_cachesettings_change", args=[1])
    boss.post(change, {"policy": "", "ttl_seconds": ""})
    assert tables_now("UTC").cache_settings == Settings("", None, charges=False)
    for wrong in ("0", "-1", "99999999999"):
        assert "errorlist" in boss.post(change, {"policy": "", "ttl_seconds": wrong}).content.decode()


def test_policies_of_tenants_and_keys_are_rules(boss):
    tenant = make_tenant("acme", cache_policy="deterministic", cache_scope="shared")
    key = make_key(tenant=tenant, cache_policy="all").row
    tables = tables_now("UTC")
    assert tables.cache_choices[tenant.pk] == ("deterministic", "shared")
    assert tables.keys[key.pk].cache_policy == "all"
    with pytest.raises(ValidationError):
        Tenant(name="x", cache_policy="sometimes").full_clean()


def test_a_key_gets_its_policy_at_the_shell(capsys):
    make_tenant("acme")
    call_command("create_key", tenant="acme", name="kept", cache="all")
    assert ApiKey.objects.get().cache_policy == "all"


@pytest.mark.parametrize("model", [Tenant, ApiKey])
def test_the_database_takes_no_other_policy(model):
    key = make_key().row
    row = key if model is ApiKey else key.tenant
    with pytest.raises(IntegrityError):
        model.objects.filter(pk=row.pk).update(cache_policy="sometimes")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--all"], "Purged the answers of all."),
        (["--tenant", "acme"], "Purged the answers of acme."),
        (["--model", "Qwen3:8B"], "Purged the answers by qwen3:8b."),
    ],
)
def test_the_command_purges(arguments, says, capsys):
    make_tenant("acme")
    call_command("purge_cache", *arguments)
    assert capsys.readouterr().out.strip() == says
    assert CachePurge.objects.count() == 1
    call_command("purge_cache", *arguments, "--json")
    assert json.loads(capsys.readouterr().out)["changed"] is True


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["--tenant", "nobody"], 1), (["--model", "no name!"], 1), (["--model", "a", "--tenant", "b"], 1)],
)
def test_what_cannot_be_purged_is_refused(arguments, code):
    with pytest.raises(CommandError) as refused:
        call_command("purge_cache", *arguments)
    assert refused.value.returncode == code
    assert not CachePurge.objects.exists()


def test_what_the_cache_did_is_added_up_by_day_and_tenant():
    tenant = make_tenant("acme")
    reports = WorkerReports()
    for _ in range(2):
        reports.used_cache({tenant.pk: [1, 2, 3, 4, 5, 6]})
        uses, reports._uses = reports._uses, {}
        reports._write_uses(uses)
    row = CacheUse.objects.get()
    assert (row.hits, row.misses, row.coalesced, row.bypassed) == (2, 4, 6, 8)
    assert (row.saved_gpu_us, row.saved_tokens) == (10, 12)
    assert row.day == datetime.now(UTC).date()
