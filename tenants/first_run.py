"""The first account: whoever reads the output of the first start may make it, and nobody after them."""

import hmac
import secrets

from django.conf import settings
from django.db import transaction
from django.urls import reverse

from tenants.keys import digest
from tenants.models import Membership, Role, SetupLink, Tenant, User


class AlreadySetUp(Exception):
    """There is an account, or the link was used."""


def new_link() -> str | None:
    """A link that makes the first account; earlier ones end. None where there is an account already."""
    if User.objects.exists():
        return None
    token = secrets.token_urlsafe(24)
    SetupLink.objects.update_or_create(id=1, defaults={"digest": _digest(token)})
    return settings.SITE_URL + reverse("setup_account", args=[token])


def opens(token: str) -> bool:
    row = SetupLink.objects.first()
    return row is not None and hmac.compare_digest(bytes(row.digest), _digest(token)) and not User.objects.exists()


def make_first_account(token: str, user: User, tenant_name: str) -> None:
    """Saves the user as the administrator who owns the first tenant. Raises AlreadySetUp."""
    with transaction.atomic():
        # Of two at once, one deletes it; the other waits for the row and finds it gone.
        deleted, _ = SetupLink.objects.filter(id=1, digest=_digest(token)).delete()
        if not deleted or User.objects.exists():
            raise AlreadySetUp
        user.is_staff = user.is_superuser = True
        user.save()
        tenant, _ = Tenant.objects.get_or_create(name=tenant_name)
        Membership.objects.create(tenant=tenant, user=user, role=Role.OWNER)


def _digest(token: str) -> bytes:
    return digest(b"setup " + token.encode(), settings.KEY_PEPPER)
