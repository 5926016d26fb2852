"""API keys. The secret is in the answer to the creation or the rotation, and nowhere else. They are revoked, never
deleted."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Path, Router
from ninja.responses import Status
from pydantic import BaseModel, Field

from gateway_site.management_api import kept_answers
from gateway_site.management_api.errors import Conflict, Forbidden, Invalid
from gateway_site.management_api.fields import Body, ModelName, Moment, Name, Number, changes_of
from gateway_site.management_api.paging import After, Size, page, page_of
from gateway_site.management_api.people import Username
from gateway_site.management_api.resources import IdempotencyKey, Resource, changing, reading, required
from gateway_site.management_api.tenants import CachePolicy
from gateway_site.management_api.tokens import Caller
from proxy.model_names import are_within
from tenants import authority
from tenants.forms import OVERLAPS
from tenants.keys import issue, rotate_key
from tenants.models import ApiKey, Authority, Membership, Role, User

LONGEST_OVERLAP = int(max(overlap for _, overlap in OVERLAPS.values()).total_seconds())

# About each of authority.BOUNDS, to those who stand below whoever set it.
WHAT_ONE_MAY = {
    "max_output_tokens": "You may lower it; ask them for more.",
    "models_allowed": "You may take models away; ask them for others.",
    "expires_at": "You may choose an earlier moment; ask them for a later one.",
}

PrefixInPath = Annotated[str, Path(pattern=r"^[0-9A-Za-z_-]{1,16}$", description="The part between the underscores.")]


class NewKey(Body):
    tenant: Name
    name: Name
    user: Annotated[Username | None, Field(description="Whose key it is. Null: a service key of the tenant.")] = None
    enabled: bool = True
    expires_at: Moment | None = None
    models_allowed: Annotated[
        list[ModelName], Field(max_length=500, description="Names or patterns. Empty: all models of the gateway.")
    ] = []
    may_infer: bool = True
    may_list: bool = True
    may_manage: Annotated[bool, Field(description="Superusers alone give it.")] = False
    may_use_cloud: Annotated[bool, Field(description="Superusers alone give it.")] = False
    may_be_in_path: bool = False
    max_output_tokens: Number | None = None
    latency_class: Annotated[Literal["", "interactive", "batch"], Field(description="Empty: as the tenant.")] = ""
    weight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    cache_policy: CachePolicy = ""


class Rotation(Body):
    overlap_seconds: Annotated[
        int, Field(ge=0, le=LONGEST_OVERLAP, description="For so long the old secret goes on working.")
    ] = 86_400


class ShownKey(BaseModel):
    prefix: str
    tenant: str
    name: str
    user: str | None
    state: str
    enabled: bool
    expires_at: datetime | None
    models_allowed: list[str]
    may_infer: bool
    may_list: bool
    may_manage: bool
    may_use_cloud: bool
    may_be_in_path: bool
    max_output_tokens: int | None
    latency_class: str
    weight: int | None
    cache_policy: str
    imported: bool
    created_at: datetime
    created_by: str | None
    revoked_at: datetime | None
    previous_expires_at: datetime | None
    last_used_at: datetime | None


class KeyWithSecret(ShownKey):
    key: Annotated[str | None, Field(description="The secret, this once. Null where the answer is told again.")]


class Keys(Resource):
    path, one, scope, model = "keys", "key", "keys:write", ApiKey
    New, Shown, fixed, secrets, identity = NewKey, ShownKey, ("tenant", "user"), ("key",), "prefix"
    # They cost the operator money, or change models for everybody; what bounds them once they were given; and what
    # pages other than the admin's do not have, or have for owners alone.
    RIGHTS_OF_SUPERUSERS = ("may_manage", "may_use_cloud")
    BOUNDS = ("models_allowed", "expires_at")
    OF_THE_ADMIN = ("may_infer", "may_list", "cache_policy")
    OF_OWNERS = ("weight",)

    def rows(self, caller: Caller) -> QuerySet[Any]:
        rows = ApiKey.objects.select_related("tenant", "user", "created_by", "last_used")
        if not caller.oversees(ApiKey, "view"):
            rows = rows.filter(pk__in=ApiKey.objects.visible_to(caller.user).values("pk"))
        return rows if caller.token.tenant_id is None else rows.filter(tenant__in=caller.tenants_seen())

    def shown(self, row: Any) -> dict[str, Any]:
        names = {"tenant", "user", "created_by", "last_used_at"}
        return {
            **{name: getattr(row, name) for name in ShownKey.model_fields if name not in names},
            "tenant": row.tenant.name,
            "user": row.user and row.user.username,
            "created_by": row.created_by and row.created_by.username,
            "last_used_at": row.last_used.at if hasattr(row, "last_used") else None,
        }

    def columns(self, caller: Caller, given: Mapping[str, Any]) -> dict[str, Any]:
        columns = dict(given)
        if "tenant" in columns:
            columns["tenant"] = self._tenant(caller, columns["tenant"])
        if columns.get("user") is not None:
            # The people of the tenant, and no others: who else is there is not told.
            inside = Membership.objects.filter(tenant=columns["tenant"])
            if not caller.oversees(ApiKey, "add"):
                inside = inside.exclude(role=Role.VIEWER)
            people = User.objects.filter(pk__in=inside.values("user"))
            columns["user"] = required(people, "user", columns["user"], username=columns["user"])
        return columns

    def _tenant(self, caller: Caller, name: str) -> Any:
        if caller.oversees(ApiKey, "add"):
            return required(caller.tenants_governed(ApiKey, "add"), "tenant", name, name=name)
        tenant = required(caller.tenants_for_keys(), "tenant", name, name=name)
        if not tenant.enabled:
            raise Conflict(f"{tenant} is switched off: its keys would not work. Ask an administrator.", field="tenant")
        return tenant

    def may_create(self, caller: Caller, row: Any) -> None:
        self._admin_fields(caller, row, {name: getattr(row, name) for name in NewKey.model_fields}, of=ApiKey())
        if row.user_id != caller.user.pk and not self._governs(caller, row, "add"):
            whose = "service keys" if row.user_id is None else "keys for others"
            raise Forbidden(f"Only owners of {row.tenant} make {whose}.")

    def may_change(self, caller: Caller, row: Any, columns: Mapping[str, Any]) -> None:
        self.may_end(caller, row)
        if row.revoked_at:
            raise Conflict("This key is revoked, which is for ever. Make a new one.")
        self._admin_fields(caller, row, columns, of=row)

    def may_end(self, caller: Caller, row: Any) -> None:
        # Staff who may only look see keys that are neither theirs nor of a tenant of theirs.
        if not caller.oversees(ApiKey, "change") and not self._is_of(caller.user, row):
            raise Forbidden("Your rights do not reach so far as to change this key.")

    def _admin_fields(self, caller: Caller, row: Any, columns: Mapping[str, Any], *, of: Any) -> None:
        changed = {name for name, value in columns.items() if name not in self.fixed and value != getattr(of, name)}
        if caller.user.is_superuser:
            return
        if not changed.isdisjoint(self.RIGHTS_OF_SUPERUSERS):
            raise Forbidden("Only superusers give the rights to manage models and to use the cloud.")
        if row.pk is not None and row.has_rights_of_superusers and not changed.isdisjoint(self.BOUNDS):
            raise Forbidden("What bounds a key with rights of superusers is theirs to change.")
        if not changed.isdisjoint(self.OF_THE_ADMIN) and not caller.oversees(ApiKey, "change"):
            raise Forbidden(f"Only administrators set {', '.join(sorted(changed & {*self.OF_THE_ADMIN}))}.")
        if not changed.isdisjoint(self.OF_OWNERS) and not self._governs(caller, row, "change"):
            raise Forbidden(f"Only owners of {row.tenant} set the weight of its keys.")

    def _governs(self, caller: Caller, row: Any, action: str) -> bool:
        return caller.tenants_governed(ApiKey, action).filter(pk=row.tenant_id).exists()

    def create(self, caller: Caller, new: BaseModel) -> Status:
        row = self.build(caller, new)
        self.may_create(caller, row)
        if row.expires_at is not None and row.expires_at <= timezone.now():
            raise Invalid("That moment has passed: the key would never work.", field="expires_at")
        by = self._authority(caller, row)
        row.created_by = caller.user
        for name in authority.BOUNDS:
            setattr(row, f"{name}_by", by)
        row.switched_off_by = "" if row.enabled else by
        made = issue(row)
        return Status(201, self._with_secret(made.row, made.clear_text))

    def change(self, caller: Caller, row: Any, given: Mapping[str, Any]) -> Any:
        columns = self.columns(caller, given)
        self.may_change(caller, row, columns)
        by = self._authority(caller, row)
        for name, advice in WHAT_ONE_MAY.items():
            if name in columns:
                value = columns.pop(name)
                if not authority.may_bound(by, row, name, value, are_within):
                    whose = Authority(getattr(row, f"{name}_by")).label.capitalize()
                    raise Forbidden(f"{whose} set this. {advice}", field=name)
                columns |= authority.bounded(row, name, value, by)
        if (enabled := columns.pop("enabled", None)) is not None:
            if not authority.switch(row, on=enabled, by=by):
                raise Forbidden("Somebody above you switched this key off. Ask them.")
            columns |= {"enabled": row.enabled, "switched_off_by": row.switched_off_by}
        for name, value in columns.items():
            setattr(row, name, value)
        row.full_clean()
        if columns:
            row.save(update_fields=list(columns))
        return row

    def rotate(self, caller: Caller, row: Any, overlap: timedelta) -> Status:
        self.may_change(caller, row, {})
        if row.imported:
            raise Conflict("This key was brought along from elsewhere. Make a new one instead, and revoke this.")
        if row.has_rights_of_superusers and not caller.user.is_superuser and not self._given_to(caller, row):
            raise Forbidden("This key has rights that were given to somebody else: whoever knows its secret has them.")
        made = rotate_key(row, overlap)
        return Status(200, self._with_secret(self.rows(caller).get(pk=row.pk), made.clear_text))

    def _given_to(self, caller: Caller, row: Any) -> bool:
        """The pages' rule for people of the tenant; to staff such a key is not given (T3)."""
        return self._is_of(caller.user, row) and row.user_id in (None, caller.user.pk)

    def _is_of(self, user: User, row: Any) -> bool:
        return ApiKey.objects.visible_to(user).filter(pk=row.pk).exists()

    def _authority(self, caller: Caller, row: Any) -> Authority:
        return authority.authority_in(caller.user, row.tenant_id)

    def _with_secret(self, row: Any, clear_text: str) -> KeyWithSecret:
        return KeyWithSecret(**self.shown(row), key=clear_text)


router = Router(tags=["keys"])
resource = Keys()
KeyPage, KeyChanges = page_of(ShownKey), changes_of(NewKey, *Keys.fixed)


@router.get("", response={200: KeyPage}, operation_id="list_keys", summary="List keys")
def list_keys(request: HttpRequest, limit: Size, after: After) -> dict[str, Any]:
    rows, following = page(resource.rows(reading(request)), limit, after)
    return {"items": [resource.answer(row) for row in rows], "next": following}


@router.post("", response={201: KeyWithSecret}, operation_id="create_key", summary="Create a key")
def create_key(request: HttpRequest, body: NewKey, key: IdempotencyKey) -> Status | HttpResponse:
    """A repetition with the same Idempotency-Key tells the same, with null for the secret: if that was lost, rotate."""
    with changing(request) as caller:
        caller.require(resource.scope)
        return kept_answers.once(caller, request, key, lambda: resource.create(caller, body), resource)


@router.get("/{prefix}", response={200: ShownKey}, operation_id="get_key", summary="One key")
def get_key(request: HttpRequest, prefix: PrefixInPath) -> BaseModel:
    return resource.answer(resource.get(reading(request), prefix=prefix))


@router.patch("/{prefix}", response={200: ShownKey}, operation_id="change_key", summary="Change a key")
def change_key(request: HttpRequest, prefix: PrefixInPath, body: KeyChanges) -> BaseModel:  # type: ignore[valid-type]
    with changing(request) as caller:
        caller.require(resource.scope)
        row = resource.locked(caller, prefix=prefix)
        return resource.answer(resource.change(caller, row, body.model_dump(exclude_unset=True)))


@router.post(
    "/{prefix}/rotate",
    response={200: KeyWithSecret},
    operation_id="rotate_key",
    summary="A new secret for a key",
)
def rotate(request: HttpRequest, prefix: PrefixInPath, body: Rotation, key: IdempotencyKey) -> Status | HttpResponse:
    with changing(request) as caller:
        caller.require(resource.scope)
        row = resource.locked(caller, prefix=prefix)
        overlap = timedelta(seconds=body.overlap_seconds)
        return kept_answers.once(caller, request, key, lambda: resource.rotate(caller, row, overlap), resource)


@router.post("/{prefix}/revoke", response={200: ShownKey}, operation_id="revoke_key", summary="End a key for good")
def revoke(request: HttpRequest, prefix: PrefixInPath) -> BaseModel:
    """Calls that are being made with it are cut within a second. Doing it twice is no error."""
    with changing(request) as caller:
        caller.require(resource.scope)
        row = resource.locked(caller, prefix=prefix)
        resource.may_end(caller, row)
        row.revoke()
        return resource.answer(row)
