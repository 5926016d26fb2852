"""Which tables of people, keys and rules are audited, and whom their rows concern."""

from typing import Any

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.contrib.auth.models import Group

from tenants import money
from tenants.auditing import track
from tenants.models import ApiKey, Invitation, IPRule, Limit, ManagementToken, Membership, Tenant, User


def track_tables() -> None:
    track(Tenant, tenant=lambda row: row.pk)
    track(User, ignored={"last_login"}, many={"groups", "user_permissions"})
    track(Membership, tenant=tenant_of)
    track(Invitation, tenant=tenant_of)
    track(ApiKey, tenant=tenant_of)
    track(ManagementToken, tenant=tenant_of)
    track(IPRule, tenant=tenant_of)
    track(Limit, tenant=_tenant_of_limit, words={"amount": _amount, "override_amount": _override})
    # allauth's and Django's. The data of a second factor is secret, and counts its uses.
    track(Group, many={"permissions"})
    track(EmailAddress)
    track(Authenticator, ignored={"data", "last_used_at"})
    track(SocialAccount, ignored={"extra_data", "last_login"})


def tenant_of(row: Any) -> int | None:
    """Of a row that belongs to a tenant, or to a key of one."""
    if row.tenant_id is not None or getattr(row, "key_id", None) is None:
        return row.tenant_id
    return row.key.tenant_id


def _tenant_of_limit(limit: Limit) -> int | None:
    """What its owners allow a person is the tenant's, too."""
    return limit.managed_by_id or tenant_of(limit)


def _amount(limit: Limit) -> int | str:
    return money.shown(limit.amount) if limit.metric == Limit.Metric.COST else limit.amount


def _override(limit: Limit) -> int | str | None:
    if limit.metric != Limit.Metric.COST or limit.override_amount is None:
        return limit.override_amount
    return money.shown(limit.override_amount)
