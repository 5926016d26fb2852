"""Who is signed in, and what they may see of calls in flight. Asks the database: for pages only."""

from types import SimpleNamespace
from typing import Any

from channels.db import database_sync_to_async
from django.conf import settings
from django.contrib.auth import get_user
from django.utils.module_loading import import_string

from proxy.live.pictures import Viewer
from tenants.models import Membership, Role
from usage.reports.scopes import sees_all_tenants

PERMISSION = "proxy.add_callcancellation"


def viewer_of(user: Any) -> Viewer:
    roles = list(
        Membership.objects.filter(user=user, tenant__archived_at=None).values_list("tenant_id", "role").order_by("pk")
    )
    ends_all = user.is_staff_who_may(PERMISSION)
    return Viewer(
        user_id=user.pk,
        name=user.get_username(),
        sees_all=ends_all or sees_all_tenants(user),
        sees_backends=user.is_staff_who_may("proxy.view_backend"),
        ends_all=ends_all,
        sees=frozenset(tenant for tenant, role in roles if role in (Role.OWNER, Role.VIEWER)),
        ends=frozenset(tenant for tenant, role in roles if role == Role.OWNER),
        belongs_to=frozenset(tenant for tenant, role in roles if role != Role.VIEWER),
    )


async def signed_in(session_key: str | None) -> Viewer | None:
    """Whoever a session belongs to, as things are now; None when it has ended or they may not sign in any more."""
    viewer: Viewer | None = await database_sync_to_async(_signed_in)(session_key)
    return viewer


def _signed_in(session_key: str | None) -> Viewer | None:
    if not session_key:
        return None
    session = import_string(f"{settings.SESSION_ENGINE}.SessionStore")(session_key)
    # Also verifies the session's hash: a changed password ends it.
    user = get_user(SimpleNamespace(session=session))  # type: ignore[arg-type]  # it wants no more of a request
    return viewer_of(user) if user.is_authenticated and user.is_active else None
