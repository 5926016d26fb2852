"""Rows with sensible defaults. Nothing here looks at what the caller did not ask for."""

import itertools
from datetime import UTC, datetime
from uuid import uuid4

from proxy.models import Backend
from tenants.keys import NewKey, create_key
from tenants.models import ApiKey, IPRule, Limit, Membership, Role, Tenant, User
from usage.models import Price, UsageRecord

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
PASSWORD = "correct horse battery staple"
_numbers = itertools.count(1)


def make_tenant(name=None, **fields) -> Tenant:
    return Tenant.objects.create(name=name or f"tenant-{next(_numbers)}", **fields)


def make_user(username=None, *, tenant=None, role=Role.MEMBER, password=None, **fields) -> User:
    """Without a password they cannot sign in by a form; `force_login` does not need one."""
    user = User.objects.create_user(username or f"user-{next(_numbers)}", password=password, **fields)
    if tenant:
        Membership.objects.create(tenant=tenant, user=user, role=role)
    return user


def make_admin(username=None, **fields) -> User:
    return make_user(username or f"admin-{next(_numbers)}", is_staff=True, is_superuser=True, **fields)


def make_key(tenant=None, name=None, **fields) -> NewKey:
    """`.row` and `.clear_text`."""
    return create_key(tenant or make_tenant(), name or f"key-{next(_numbers)}", **fields)


def make_backend(name=None, url="http://127.0.0.1:11434", **fields) -> Backend:
    return Backend.objects.create(name=name or f"backend-{next(_numbers)}", url=url, **fields)


def make_limit(amount=10, *, metric="requests", window="minute", tenant=None, user=None, key=None, **fields) -> Limit:
    scope = "tenant" if tenant else "user" if user else "key" if key else "default"
    fields.setdefault("scope", scope)
    return Limit.objects.create(
        amount=amount, metric=metric, window=window, tenant=tenant, user=user, key=key, **fields
    )


def make_ip_rule(cidr="10.0.0.0/8", action="allow", **fields) -> IPRule:
    return IPRule.objects.create(cidr=cidr, action=action, **fields)


def make_price(model="llama3.2:latest", **fields) -> Price:
    fields.setdefault("valid_from", NOON.replace(year=2020))
    return Price.objects.create(model=model, **fields)


def make_usage(key: ApiKey | None = None, *, at=NOON, **fields) -> UsageRecord:
    """The record alone, as it never is in life: its sums are missing (see usage.rollups.rebuild)."""
    key = key or make_key().row
    defaults = {
        "id": uuid4(),
        "started_at": at,
        "finished_at": at,
        "tenant": key.tenant,
        "tenant_name": key.tenant.name,
        "user": key.user,
        "user_name": key.user.username if key.user else "",
        "api_key": key,
        "key_name": key.name,
        "backend": "gpu1",
        "model_asked": "llama3.2",
        "model": "llama3.2:latest",
        "endpoint": "/api/chat",
        "dialect": "ollama",
        "stream": True,
        "status": 200,
        "outcome": "ok",
        "attempts": 1,
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "decode_us": 1_000_000,
        "total_us": 1_500_000,
        "cost_nano": 5_000,
        "currency": "EUR",
    }
    return UsageRecord.objects.create(**{**defaults, **fields})
