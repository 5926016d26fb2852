"""Users, who is in which tenant, and who was asked to come."""

import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from ninja.responses import Status
from pydantic import BaseModel, Field, StringConstraints

from gateway_site.management_api.errors import Forbidden, TooManyRequests
from gateway_site.management_api.fields import Body, Name
from gateway_site.management_api.resources import Resource, required
from gateway_site.management_api.tokens import Caller
from tenants import invitations, memberships, rate_limits
from tenants.models import Invitation, Membership, User

logger = logging.getLogger(__name__)

Username = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9@.+_-]{1,150}$")]
# Which addresses are ones is Django's to say.
Email = Annotated[str, StringConstraints(max_length=254)]
PersonName = Annotated[str, StringConstraints(max_length=150)]
RoleName = Literal["owner", "member", "viewer"]


class NewUser(Body):
    username: Username
    email: Email = ""
    first_name: PersonName = ""
    last_name: PersonName = ""
    is_active: bool = True
    is_staff: Annotated[bool, Field(description="Superusers alone hand it out.")] = False
    is_superuser: Annotated[bool, Field(description="Superusers alone hand it out.")] = False


class ShownUser(BaseModel):
    id: int
    username: str
    email: str
    first_name: str
    last_name: str
    is_active: bool
    is_staff: bool
    is_superuser: bool
    date_joined: datetime


class Users(Resource):
    """They are switched off, not deleted. A new one has no password: they are invited, or come by single sign-on."""

    path, one, scope, model = "users", "user", "people:write", User
    New, Shown = NewUser, ShownUser
    natural = ("username",)
    compared = ("email", "first_name", "last_name", "is_active", "is_staff", "is_superuser")
    RIGHTS = ("is_staff", "is_superuser")

    def rows(self, caller: Caller) -> QuerySet[Any]:
        if caller.oversees(User, "view") and caller.token.tenant_id is None:
            return User.objects.all()
        inside = Membership.objects.filter(tenant__in=caller.tenants_governed(User, "view"))
        return User.objects.filter(Q(pk__in=inside.values("user")) | Q(pk=caller.user.pk))

    def build(self, caller: Caller, new: BaseModel) -> Any:
        user = super().build(caller, new)
        user.set_unusable_password()
        return user

    def may_create(self, caller: Caller, row: Any) -> None:
        caller.require_everywhere("new users")
        super().may_create(caller, row)
        self._hand_out_rights(caller, row.is_staff or row.is_superuser)

    def may_change(self, caller: Caller, row: Any, columns: Mapping[str, Any]) -> None:
        caller.require_everywhere("users as such")
        super().may_change(caller, row, columns)
        # Whoever may change what other staff sign in with has the rights of all of them (T3).
        if not caller.user.is_superuser and (row.is_superuser or (row.is_staff and row.pk != caller.user.pk)):
            raise Forbidden("Only superusers change other staff.")
        changed = [name for name, value in columns.items() if value != getattr(row, name)]
        self._hand_out_rights(caller, not {*self.RIGHTS}.isdisjoint(changed))
        if row.pk == caller.user.pk and not {"is_active", "is_superuser"}.isdisjoint(changed):
            raise Forbidden("Nobody switches off themselves, or takes their own rights away: somebody else can.")

    def _hand_out_rights(self, caller: Caller, wanted: bool) -> None:
        if wanted and not caller.user.is_superuser:
            raise Forbidden("Only superusers hand out the rights of staff and superusers.")


class NewMembership(Body):
    tenant: Name
    user: Username
    role: RoleName


class ShownMembership(BaseModel):
    id: int
    tenant: str
    user: str
    role: str


class Memberships(Resource):
    """Owners change roles and put people out; into their tenants they invite them. Putting out revokes keys."""

    path, one, scope, model = "memberships", "membership", "people:write", Membership
    New, Shown, fixed = NewMembership, ShownMembership, ("tenant", "user")
    natural, compared, related = ("tenant", "user"), ("role",), ("tenant", "user")

    def rows(self, caller: Caller) -> QuerySet[Any]:
        governed = Q(tenant__in=caller.tenants_governed(Membership, "view"))
        own = Q(user=caller.user, tenant__in=caller.tenants_seen())
        return Membership.objects.filter(governed | own).select_related(*self.related)

    def shown(self, row: Any) -> dict[str, Any]:
        return {"id": row.pk, "tenant": row.tenant.name, "user": row.user.username, "role": row.role}

    def columns(self, caller: Caller, given: Mapping[str, Any]) -> dict[str, Any]:
        columns = dict(given)
        if "tenant" in columns:
            seen = caller.tenants_governed(Membership, "view")
            columns["tenant"] = required(seen, "tenant", columns["tenant"], name=columns["tenant"])
        if "user" in columns:
            people = User.objects.all() if caller.oversees(Membership, "add") else Users().rows(caller)
            columns["user"] = required(people, "user", columns["user"], username=columns["user"])
        return columns

    def may_create(self, caller: Caller, row: Any) -> None:
        if not caller.oversees(Membership, "add"):
            raise Forbidden("Invite people into your tenant: POST /manage/api/invitations.")

    def may_change(self, caller: Caller, row: Any, columns: Mapping[str, Any]) -> None:
        self._govern(caller, row, "change")

    def may_end(self, caller: Caller, row: Any) -> None:
        self._govern(caller, row, "delete")

    def change(self, caller: Caller, row: Any, given: Mapping[str, Any]) -> Any:
        self.may_change(caller, row, given)
        if "role" in given:
            memberships.change_role(row, given["role"])
        return row

    def end(self, caller: Caller, row: Any) -> None:
        memberships.remove(row)

    def _govern(self, caller: Caller, row: Any, action: str) -> None:
        if not caller.tenants_governed(Membership, action).filter(pk=row.tenant_id).exists():
            raise Forbidden("Only owners of a tenant manage its people.")


class NewInvitation(Body):
    tenant: Name
    email: Email
    role: RoleName = "member"


class ShownInvitation(BaseModel):
    id: int
    tenant: str
    email: str
    role: str
    invited_by: str | None
    created_at: datetime
    expires_at: datetime
    link: Annotated[str | None, Field(description="In the answer to the creation, where no mail is sent; else null.")]


class Invitations(Resource):
    """Those that are open. A new one to the same address takes the place of the one before."""

    path, one, scope, model = "invitations", "invitation", "people:write", Invitation
    New, Shown, secrets = NewInvitation, ShownInvitation, ("link",)

    def rows(self, caller: Caller) -> QuerySet[Any]:
        tenants = caller.tenants_governed(Invitation, "view")
        return Invitation.objects.open().filter(tenant__in=tenants).select_related("tenant", "invited_by")

    def shown(self, row: Any, link: str | None = None) -> dict[str, Any]:
        return {
            "id": row.pk,
            "tenant": row.tenant.name,
            "email": row.email,
            "role": row.role,
            "invited_by": row.invited_by and row.invited_by.username,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "link": link,
        }

    def admit(self, request: HttpRequest, caller: Caller) -> None:
        """As many mails as the page sends, both together."""
        wait = settings.EMAIL_IS_SENT and rate_limits.seconds_to_wait(
            request, rate_limits.MAIL, "user", str(caller.user.pk)
        )
        if wait:
            raise TooManyRequests(f"Too many {rate_limits.MAIL.what} in a short time.", wait)

    def create(self, caller: Caller, new: Any) -> Status:
        tenant = required(caller.tenants_governed(Invitation, "add"), "tenant", new.tenant, name=new.tenant)
        Invitation(tenant=tenant, email=new.email, role=new.role).clean_fields(exclude=["digest", "expires_at"])
        made = invitations.invite(tenant, new.email, new.role, caller.user)
        if settings.EMAIL_IS_SENT:
            # When it holds: nobody is asked to come by a transaction that was rolled back.
            transaction.on_commit(partial(_send, made))
        return Status(201, self.Shown(**self.shown(made.row, None if settings.EMAIL_IS_SENT else made.link)))

    def may_end(self, caller: Caller, row: Any) -> None:
        if not caller.tenants_governed(Invitation, "change").filter(pk=row.tenant_id).exists():
            raise Forbidden("Only owners of a tenant manage its people.")

    def end(self, caller: Caller, row: Any) -> None:
        row.withdrawn_at = timezone.now()
        row.save(update_fields=["withdrawn_at"])


def _send(made: invitations.NewInvitation) -> None:
    try:
        invitations.send(made)
    except OSError as exc:
        logger.warning("The invitation could not be sent: %s", exc)
