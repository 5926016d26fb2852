"""Sessions of people at a gateway, made in its database as its sign-in would make them."""

from datetime import timedelta

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.test import override_settings
from django.utils import timezone
from django.utils.crypto import get_random_string

from tenants.models import Membership, User
from tests.live.gateway import Gateway


def make_person(gateway: Gateway, name: str, **roles: str) -> User:
    """`roles`: tenant → role. Without any, somebody who only signs in."""
    user = gateway.rows(User).create(username=name, password="!")
    for tenant, role in roles.items():
        gateway.rows(Membership).create(user=user, tenant=gateway.tenant(tenant), role=role)
    return user


def sign_in(gateway: Gateway, user: User) -> str:
    """The session's key, which is the value of the cookie `sessionid`."""
    with override_settings(SECRET_KEY=gateway.env["SECRET_KEY"]):
        data = SessionStore().encode(
            {
                SESSION_KEY: str(user.pk),
                BACKEND_SESSION_KEY: settings.AUTHENTICATION_BACKENDS[0],
                HASH_SESSION_KEY: user.get_session_auth_hash(),
            }
        )
    key = get_random_string(32)
    gateway.rows(Session).create(session_key=key, session_data=data, expire_date=timezone.now() + timedelta(hours=1))
    return key
