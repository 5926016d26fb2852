"""Rules the data must obey whoever writes it, on both databases."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.db.models import F

from proxy.models import Backend, ModelPolicy
from tenants.models import ApiKey, IPRule, Limit, Membership, Tenant
from tests.factories import NOON, make_backend, make_key, make_limit, make_price, make_tenant, make_usage, make_user
from usage.models import Price, Retention, UsageBucket, UsageRecord

pytestmark = pytest.mark.usefixtures("database")


def forbidden(constraint, action):
    with pytest.raises(IntegrityError) as refused, transaction.atomic():
        action()
    # SQLite names a check, but not an index.
    assert constraint in str(refused.value) or "UNIQUE constraint failed" in str(refused.value)


def test_tenants():
    tenant = make_tenant("acme")
    forbidden("tenants_tenant_name", lambda: make_tenant("acme"))
    forbidden("tenant_has_a_name", lambda: Tenant.objects.filter(pk=tenant.pk).update(name=""))


def test_memberships():
    tenant = make_tenant()
    user = make_user(tenant=tenant)
    forbidden("membership_once_per_tenant", lambda: Membership.objects.create(tenant=tenant, user=user))
    forbidden("membership_role_known", lambda: Membership.objects.update(role="boss"))


def test_keys():
    row = make_key().row
    keys = ApiKey.objects.filter(pk=row.pk)
    forbidden("key_expires_after_creation", lambda: keys.update(expires_at=F("created_at")))
    forbidden("key_overlap_has_an_end", lambda: keys.update(previous_digest=b"x"))
    forbidden("key_output_cap_positive", lambda: keys.update(max_output_tokens=0))
    forbidden("tenants_apikey_digest", lambda: ApiKey.objects.create(
        tenant=row.tenant, name="twin", prefix="other", digest=bytes(row.digest)
    ))  # fmt: skip
    forbidden("tenants_apikey_prefix", lambda: ApiKey.objects.create(
        tenant=row.tenant, name="twin", prefix=row.prefix, digest=b"y"
    ))  # fmt: skip


def test_ip_rules():
    row = make_key().row
    rule = {"cidr": "10.0.0.0/8", "action": "allow"}
    create = IPRule.objects.create
    forbidden("ip_rule_action_known", lambda: create(**{**rule, "action": "maybe"}))
    forbidden("ip_rule_one_scope", lambda: create(**rule, tenant=row.tenant, key=row))
    forbidden("ip_rule_acting_allows_all", lambda: create(**{**rule, "action": "deny"}, acts_as=row))
    forbidden("ip_rule_acting_allows_all", lambda: create(**rule, tenant=row.tenant, acts_as=row))


def test_limits():
    tenant = make_tenant()
    forbidden("limit_scope_names_its_subject", lambda: make_limit(scope="tenant"))
    forbidden("limit_scope_names_its_subject", lambda: make_limit(scope="default", tenant=tenant))
    forbidden("limit_seconds_only_for_seconds", lambda: make_limit(window="seconds"))
    forbidden("limit_seconds_only_for_seconds", lambda: make_limit(window="seconds", window_seconds=0))
    forbidden("limit_seconds_only_for_seconds", lambda: make_limit(window="day", window_seconds=5))
    forbidden("limit_concurrent_has_no_window", lambda: make_limit(metric="concurrent", window="day"))
    forbidden("limit_concurrent_has_no_window", lambda: make_limit(metric="tokens", window="none"))
    forbidden("limit_metric_known", lambda: make_limit(metric="tears"))
    forbidden("limit_window_known", lambda: make_limit(window="week"))
    forbidden("limit_mode_known", lambda: make_limit(mode="perhaps"))
    forbidden("amount", lambda: make_limit(-1))
    assert not Limit.objects.exists()


def test_backends_and_policies():
    make_backend("gpu")
    forbidden("proxy_backend_name", lambda: make_backend("gpu"))
    forbidden("backend_has_a_slot", lambda: Backend.objects.update(slots=0))
    forbidden("backend_transport_known", lambda: Backend.objects.update(transport="post"))
    forbidden("backend_has_name_and_url", lambda: Backend.objects.update(url=""))
    forbidden("policy_num_ctx_possible", lambda: ModelPolicy.objects.create(pattern="*", num_ctx=3))
    forbidden("policy_output_cap_positive", lambda: ModelPolicy.objects.create(pattern="*", max_output_tokens=0))


def test_prices_and_usage():
    make_price("m")
    forbidden("price_once_per_moment", lambda: make_price("m"))
    forbidden("price_names_a_model", lambda: Price.objects.update(model=""))
    record = make_usage()
    forbidden("record_outcome_known", lambda: UsageRecord.objects.update(outcome="perhaps"))
    sums = {"tenant": record.tenant, "api_key": record.api_key, "model": "m", "start": NOON}
    UsageBucket.objects.create(**sums)
    # Without a user too: null is not unlike null here.
    forbidden("bucket_once", lambda: UsageBucket.objects.create(**sums))
    UsageBucket.objects.create(**{**sums, "start": NOON + timedelta(minutes=15)})
    forbidden("retention_one_row", lambda: Retention.objects.create(id=2, records_since=NOON))


def test_a_record_outlives_what_it_points_at():
    record = make_usage()
    UsageRecord.objects.update(tenant_id=10**6, api_key_id=10**6, user_id=10**6, price_id=10**6)
    assert UsageRecord.objects.get(pk=record.pk).tenant_name == record.tenant_name
