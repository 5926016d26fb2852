"""What every page knows besides what its view gives it."""

from django.conf import settings
from django.http import HttpRequest

from tenants.models import Role, User


def site(request: HttpRequest) -> dict[str, object]:
    user = getattr(request, "user", None)
    known = user if user is not None and user.is_authenticated else None
    return {
        "demo": settings.DEMO,
        "email_is_sent": settings.EMAIL_IS_SENT,
        "has_accounts": User.objects.exists,  # asked only where a page wants to know
        "may_have_keys": bool(known and known.tenants_for_keys().exists()),
        "owns_a_tenant": bool(known and known.tenants_owned().exists()),
        "tenants_keeping_texts": list(known.tenants_with_role(*Role.values).filter(keeps_texts=True)) if known else [],
    }
