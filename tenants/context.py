"""What every page knows besides what its view gives it."""

from django.conf import settings
from django.http import HttpRequest


def site(request: HttpRequest) -> dict[str, object]:
    user = getattr(request, "user", None)
    return {
        "demo": settings.DEMO,
        "email_is_sent": settings.EMAIL_IS_SENT,
        "owns_a_tenant": bool(user is not None and user.is_authenticated and user.tenants_owned().exists()),
    }
