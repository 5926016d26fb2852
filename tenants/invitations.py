"""Invitations: made, sent, found by their link, accepted. The token of a link is known only while it is made."""

import secrets
from dataclasses import dataclass, field
from datetime import timedelta

from allauth.account.models import EmailAddress
from django.conf import settings
from django.core.mail import send_mail
from django.db import transaction
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone

from tenants.auditing import change
from tenants.keys import digest
from tenants.models import Invitation, Membership, Tenant, User
from tenants.subjects import one_line

LIFETIME = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class NewInvitation:
    """An invitation at the one moment when its link is known."""

    row: Invitation
    link: str = field(repr=False)


class NotOpen(Exception):
    """It was accepted, withdrawn or too old in the meantime."""


def invite(tenant: Tenant, email: str, role: str, by: User) -> NewInvitation:
    """A new invitation; earlier ones to the same address end."""
    token = secrets.token_urlsafe(32)
    with transaction.atomic():
        change(Invitation.objects.filter(tenant=tenant, email__iexact=email).open(), withdrawn_at=timezone.now())
        row = Invitation.objects.create(
            tenant=tenant,
            email=email,
            role=role,
            digest=_digests(token)[0],
            invited_by=by,
            expires_at=timezone.now() + LIFETIME,
            link_shown=not settings.EMAIL_IS_SENT,
        )
    return NewInvitation(row, settings.SITE_URL + reverse("invitation", args=[token]))


def send(new: NewInvitation) -> None:
    """Raises OSError (smtplib's errors are some) when the mail server does not take it."""
    context = {"invitation": new.row, "link": new.link, "days": LIFETIME.days}
    send_mail(
        one_line(f"You are invited to {new.row.tenant} on Ollama Gateway"),
        render_to_string("tenants/mail/invitation.txt", context),
        None,
        [new.row.email],
    )


def hand_over(new: NewInvitation) -> str:
    """The link of a mail that was not taken, for whoever invites: following it proves no mailbox any more."""
    if not new.row.link_shown:
        change(Invitation.objects.filter(pk=new.row.pk), link_shown=True)
    return new.link


def find(token: str) -> Invitation | None:
    """The open invitation of a link."""
    return Invitation.objects.open().select_related("tenant", "invited_by").filter(digest__in=_digests(token)).first()


def accept(invitation: Invitation, user: User) -> Membership:
    """Who is in the tenant already keeps their role. Raises NotOpen."""
    with transaction.atomic():
        # Locked first: an update of open() asks in a subquery whether it is, before it waits for another update.
        Invitation.objects.select_for_update().get(pk=invitation.pk)
        still_open = Invitation.objects.filter(pk=invitation.pk).open()
        taken = change(still_open, accepted_at=timezone.now(), accepted_by=user)
        if not taken:
            raise NotOpen
        membership, _ = Membership.objects.get_or_create(
            tenant=invitation.tenant, user=user, defaults={"role": invitation.role}
        )
    return membership


def note_address(user: User, email: str, *, verified: bool) -> None:
    """Tells allauth about an address. `verified`: who has the link of a sent mail has the mailbox."""
    EmailAddress.objects.get_or_create(user=user, email=email.lower(), defaults={"primary": True, "verified": verified})


def is_taken(email: str) -> bool:
    """Whether it is known to be somebody's mailbox: of two accounts, it can be one's."""
    return EmailAddress.objects.filter(email__iexact=email, verified=True).exists()


def _digests(token: str) -> list[bytes]:
    """By the pepper in use, and by those before."""
    peppers = (settings.KEY_PEPPER, *settings.KEY_PEPPER_FALLBACKS)
    return [digest(b"invitation " + token.encode(), pepper) for pepper in peppers]
