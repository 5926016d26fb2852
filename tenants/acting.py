"""Who is changing things just now: said once by whoever lets somebody in, noted with every change
(tenants/auditing.py)."""

import getpass
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import models

if TYPE_CHECKING:
    from tenants.models import User

NOBODY = "not signed in"


class Via(models.TextChoices):
    ADMIN = "admin"
    PAGES = "pages"
    API = "api", "management API"
    SHELL = "shell"


@dataclass(frozen=True, slots=True)
class Acting:
    """`actor`: a user; a text for whoever has no account here; or what tells one of these when it is asked."""

    actor: Any
    address: str | None = None
    via: str = Via.SHELL
    request_id: str = ""
    label: str = ""

    @property
    def user(self) -> "User | None":
        who = self.actor() if callable(self.actor) else self.actor
        return None if isinstance(who, str) or not getattr(who, "is_authenticated", False) else who

    @property
    def name(self) -> str:
        if self.label:
            return self.label
        who = self.actor() if callable(self.actor) else self.actor
        if isinstance(who, str):
            return who
        return who.get_username() if getattr(who, "is_authenticated", False) else NOBODY

    def columns(self) -> dict[str, Any]:
        """Of an audit entry."""
        return {
            "actor": self.user,
            "actor_name": self.name[:200],
            "via": self.via,
            "remote_addr": self.address or None,
            "cid": self.request_id or None,
        }


_acting: ContextVar[Acting | None] = ContextVar("acting", default=None)


@contextmanager
def acting(
    actor: "User | str | Callable[[], Any]",
    address: str | None = None,
    via: str | None = None,
    request_id: str | None = None,
    *,
    name: str = "",
) -> Iterator[None]:
    """Changes made inside are noted as those of this actor.

    A text is for who has no account, and says what it is: "set-up link". `name`: what a user is called in the entry if
    they do it by something of theirs: "token: deploy". What is not given is as it was outside: on a page the address,
    the way in and the request's id are known already.
    """
    outer = who_acts()
    inner = Acting(
        actor,
        outer.address if address is None else address,
        outer.via if via is None else via,
        outer.request_id if request_id is None else request_id,
        name,
    )
    token = _acting.set(inner)
    try:
        yield
    finally:
        _acting.reset(token)


def who_acts() -> Acting:
    """Nobody said so: then it is somebody at the shell of this machine."""
    return _acting.get() or Acting(f"shell: {_user_of_this_process()}")


def _user_of_this_process() -> str:
    # By number, where there are numbers: getpass alone believes the environment, which whoever calls can set.
    if hasattr(os, "getuid"):
        import pwd

        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return str(os.getuid())
    return getpass.getuser()
