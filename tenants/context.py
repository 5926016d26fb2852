"""What every page knows besides what its view gives it."""

from django.conf import settings
from django.http import HttpRequest

from tenants.models import User


def site(request: HttpRequest) -> dict[str, object]:
    user = getattr(request, "user", None)
    return {
        "demo": settings.DEMO,
        "email_is_sent": settings.EMAIL_IS_SENT,
        "has_accounts": User.objects.exists,  # asked only where a page wants to know
        "owns_a_tenant": bool(user is not None and user.is_authenticated and user.tenants_owned().exists()),
    }
