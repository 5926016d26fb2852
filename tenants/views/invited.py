"""What somebody sees who follows the link of an invitation."""

from django.conf import settings
from django.contrib.auth import login
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import URLPattern, path

from tenants import invitations, rate_limits
from tenants.acting import acting
from tenants.forms import NewAccountForm
from tenants.models import Invitation, User
from tenants.rate_limits import limited

by_links = limited(rate_limits.INVITATION_LINK, rate_limits.address, "POST")
# Tokens cannot be guessed; whoever tries is slowed down all the same.
by_looks = limited(rate_limits.INVITATION_LINK, rate_limits.address, "GET")


def urls() -> list[URLPattern]:
    return [path("invitation/<str:token>/", by_looks(by_links(invitation)), name="invitation")]


def invitation(request: HttpRequest, token: str) -> HttpResponse:
    response = _answer(request, token)
    # The address is the secret. Not no-referrer: browsers send forms with "Origin: null" then, which Django refuses.
    response.headers["Referrer-Policy"] = "strict-origin"
    return response


def _answer(request: HttpRequest, token: str) -> HttpResponse:
    found = invitations.find(token)
    if found is None:
        return _not_open(request)
    try:
        if request.user.is_authenticated:
            return _join(request, found)
        return _make_account(request, found)
    except invitations.NotOpen:
        return _not_open(request)


def _not_open(request: HttpRequest) -> HttpResponse:
    return render(request, "tenants/people/not_open.html", status=404)


def _join(request: HttpRequest, found: Invitation) -> HttpResponse:
    if request.method != "POST":
        return render(request, "tenants/people/join.html", {"invitation": found})
    invitations.accept(found, request.user)
    return redirect("home")


def _make_account(request: HttpRequest, found: Invitation) -> HttpResponse:
    form = NewAccountForm(request.POST or None, instance=User(email=found.email))
    if request.method == "POST" and form.is_valid() and (user := _made(form, found)):
        login(request, user, settings.AUTHENTICATION_BACKENDS[0])
        return redirect("home")
    context = {
        "invitation": found,
        "form": form,
        "has_account": User.objects.filter(email__iexact=found.email).exists(),
        "hide_sign_in": True,
    }
    return render(request, "tenants/people/accept.html", context)


def _made(form: NewAccountForm, found: Invitation) -> User | None:
    """The new account, in its tenant; None where the form says why there is none. Raises NotOpen."""
    is_verified = settings.EMAIL_IS_SENT and not found.link_shown  # whoever has the link has the mailbox
    if is_verified and invitations.is_taken(found.email):
        form.add_error(None, "There is an account with this address. Sign in to it, and follow the link again.")
        return None
    try:
        with acting(f"invited: {found.email}"), transaction.atomic():
            user = form.save()
            invitations.note_address(user, found.email, verified=is_verified)
            invitations.accept(found, user)
    except IntegrityError:
        form.add_error(None, "Somebody took this name or address at the same moment. Choose another name.")
        return None
    return user
