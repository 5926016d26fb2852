"""From the form that makes a secret to the page that shows it, exactly once: no reload and no way back shows it again.

Between the two requests the secret lies in the database, sealed with a key that only a cookie of the reader holds:
neither a backup nor a stolen cookie alone opens it, and no URL, session or log has it at all.
"""

import uuid
from datetime import timedelta

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from tenants.models import ShownOnce

COOKIE = "shown_once"
# A redirect takes milliseconds; a tab that was put to sleep in between gets some minutes.
LIFETIME = timedelta(minutes=5)


def keep(request: HttpRequest, response: HttpResponse, secret: str) -> HttpResponse:
    """Hands a secret to the page that a response redirects to."""
    ShownOnce.objects.filter(created_at__lt=timezone.now() - LIFETIME).delete()
    key = Fernet.generate_key()
    row = ShownOnce.objects.create(user=request.user, sealed=Fernet(key).encrypt(secret.encode()))
    response.set_cookie(
        COOKIE,
        f"{row.pk}:{key.decode()}",
        max_age=LIFETIME,
        httponly=True,
        secure=settings.HTTPS,
        samesite="Strict",
    )
    return response


def take(request: HttpRequest) -> str | None:
    """The secret, for the first who asks; None ever after."""
    name, _, key = request.COOKIES.get(COOKIE, "").partition(":")
    try:
        rows = ShownOnce.objects.filter(
            pk=uuid.UUID(name), user=request.user, created_at__gte=timezone.now() - LIFETIME
        )
        cipher = Fernet(key)
    except ValueError:
        return None
    row = rows.first()
    # Whoever deletes it has it: of two requests at once, one.
    if row is None or not rows.delete()[0]:
        return None
    try:
        return cipher.decrypt(bytes(row.sealed)).decode()
    except InvalidToken:
        return None


def forget_cookie(response: HttpResponse) -> HttpResponse:
    response.delete_cookie(COOKIE, samesite="Strict")
    return response
