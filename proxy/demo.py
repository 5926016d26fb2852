"""What `manage.py demo` puts into its database. The same keys at each start: they are derived, not stored."""

from dataclasses import dataclass

from django.conf import settings
from django.db import transaction

from proxy.models import Backend
from tenants.keys import derived_key, digest
from tenants.models import ApiKey, Membership, Role, Tenant, User

ADMIN = "admin"
MODELS = "llama3.2,llama3.2:1b,llama3.1:8b,qwen3,nomic-embed-text"


@dataclass(frozen=True)
class Demo:
    password: str
    keys: dict[str, str]


class NotADemo(Exception):
    """The database holds something else."""


@transaction.atomic
def make(backends: list[str]) -> Demo:
    """Creates or updates the demo's rows. Raises NotADemo rather than touch an installation."""
    if Tenant.objects.exclude(name="demo").exists():
        raise NotADemo
    tenant, _ = Tenant.objects.get_or_create(name="demo")
    password = _admin(tenant)
    for number, url in enumerate(backends, 1):
        Backend.objects.update_or_create(name=f"fake-{number}", defaults={"url": url, "slots": 4, "enabled": True})
    return Demo(password, {name: _key(tenant, name) for name in ("app", "notebook")})


def _admin(tenant: Tenant) -> str:
    password = derived_key("demo password").rpartition("_")[2][:16]
    user, created = User.objects.get_or_create(username=ADMIN, defaults={"is_staff": True, "is_superuser": True})
    if created:
        user.set_password(password)
        user.save()
        Membership.objects.create(tenant=tenant, user=user, role=Role.OWNER)
    return password


def _key(tenant: Tenant, name: str) -> str:
    clear_text = derived_key(f"demo key {name}")
    prefix = clear_text.split("_")[1]
    ApiKey.objects.get_or_create(
        prefix=prefix,
        defaults={"tenant": tenant, "name": name, "digest": digest(clear_text.encode(), settings.KEY_PEPPER)},
    )
    return clear_text
