"""What every page knows besides what its view gives it."""

from django.conf import settings
from django.http import HttpRequest

from tenants.models import Role


def site(request: HttpRequest) -> dict[str, object]:
    user = getattr(request, "user", None)
    return {
        "demo": settings.DEMO,
        "owns_a_tenant": bool(
            user is not None
            and user.is_authenticated
            and user.memberships.filter(role=Role.OWNER, tenant__archived_at=None).exists()
        ),
    }
