"""A row in every table, with one text wherever text goes: also in tables and columns that are made tomorrow."""

import json
import secrets
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from django.apps import apps
from django.conf import settings
from django.contrib.admin.models import CHANGE
from django.contrib.contenttypes.models import ContentType
from django.db import DatabaseError, models, transaction
from django.utils import timezone
from fido2.cose import ES256
from fido2.utils import websafe_encode
from fido2.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, CollectedClientData

from gateway_site.second_factors import SealingMFAAdapter as MFAAdapter
from proxy.models import ModelJob
from tenants.keys import digest
from tenants.models import ApiKey, Role, Tenant, User
from usage.models import Outcome, UsageRecord

Model = type[models.Model]

# Django's own bookkeeping, and what exists only while nobody has an account.
NOT_MADE = {
    "contenttypes.ContentType", "sessions.Session", "auth.Permission", "proxy.ConfigRevision", "tenants.SetupLink",
    "socialaccount.SocialApp",  # ours is in the settings
}  # fmt: skip
# What the link of the invitation in the rows ends with, after the text's own number.
TOKEN = "a-token-of-the-walk"


class CannotBeMade(Exception):
    pass


def of_limit(**subject: Any) -> dict[str, Any]:
    (scope,) = subject
    nobody = dict.fromkeys(("tenant", "user", "key"))
    return {**nobody, "metric": "requests", "window": "day", "window_seconds": None, "scope": scope, **subject}


def report_models(text: str) -> dict[str, Any]:
    """As proxy/models/reports.py says what the columns hold."""
    installed = {
        "name": text, "digest": text, "size": 1, "modified_at": text, "family": text, "parameters": text,
        "quantization": text, "context": 0,
    }  # fmt: skip
    warm = {"name": text, "context": 0, "size": 1, "vram": 1, "expires_at": text}
    return {"state": "up", "models": [installed], "warm": [warm]}


def passkey() -> dict[str, Any]:
    """As a browser sends one that it has made."""
    key = ES256.from_cryptography_key(ec.generate_private_key(ec.SECP256R1()).public_key())
    credential = AttestedCredentialData.create(bytes(16), secrets.token_bytes(16), key)
    data = AuthenticatorData.create(bytes(32), AuthenticatorData.FLAG.UP | AuthenticatorData.FLAG.AT, 0, credential)
    client = CollectedClientData.create("webauthn.create", b"challenge", "http://localhost:8080")
    name = websafe_encode(credential.credential_id)
    made = {
        "clientDataJSON": websafe_encode(client),
        "attestationObject": websafe_encode(AttestationObject.create("none", data, {})),
    }
    return {"id": name, "rawId": name, "type": "public-key", "response": made, "clientExtensionResults": {}}


class Rows:
    """`text`: of a field, what goes into it. Two sets of rows need two texts: names are unique."""

    def __init__(self, text: Callable[[models.Field], str] | str) -> None:
        self.text = text if callable(text) else lambda field: text
        self.made: dict[Model, list[models.Model]] = {}
        self.tag = secrets.token_hex(4)

    @property
    def token(self) -> str:
        return f"{TOKEN}-{self.tag}"

    def __getitem__(self, model: Model) -> list[Any]:
        return self.made[model]

    def first(self, model: Model) -> Any:
        if model not in self.made:
            self.make(model)
        return self.made[model][0]

    def make_all(self) -> "Rows":
        for model in apps.get_models():
            if model._meta.label not in NOT_MADE and not model._meta.auto_created:
                self.first(model)
        return self

    def make(self, model: Model) -> None:
        self.made[model] = []
        for given in self.variants(model):
            self.made[model].append(self.one(model, given))

    def one(self, model: Model, given: dict[str, Any]) -> models.Model:
        values = {}
        for field in model._meta.concrete_fields:
            name = field.name
            if name in given:
                values[name] = given[name]
            elif not (field.primary_key and (isinstance(field, models.AutoField) or has_one_row(model))):
                values[name] = self.value(model, field)
        if has_one_row(model):
            return model._default_manager.update_or_create(defaults=values, pk=1)[0]
        problem = None
        for fewer in self.with_fewer_relations(model, given):
            try:
                with transaction.atomic():
                    return model._default_manager.bulk_create([model(**{**values, **fewer})])[0]
            except DatabaseError as exc:
                problem = problem or exc
        raise CannotBeMade(
            f"tests/walk/rows.py makes a row of every table by its columns, and {model._meta.label} does not take "
            f"this one ({problem}). Say under the table's name in Rows.variants() what its columns need."
        ) from problem

    def with_fewer_relations(self, model: Model, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """With all that may be empty; with one of them each, for tables that want exactly one; with none."""
        columns = model._meta.concrete_fields
        relations = [each.name for each in columns if isinstance(each, models.ForeignKey) and each.null]
        none = dict.fromkeys(name for name in relations if name not in given)
        yield {}
        for kept in none:
            yield {name: None for name in none if name != kept}
        yield none

    def variants(self, model: Model) -> list[dict[str, Any]]:
        """What the columns of a table cannot tell: for each row to make, values by column."""
        now = timezone.now()
        match model._meta.label:
            case "tenants.Tenant":
                return [{"archived_at": None}]
            case "tenants.User":
                plain = {"is_staff": False, "is_superuser": False, "is_active": True, "password": "!"}
                return [plain, {**plain, "username": self.tag, "email": f"{self.tag}@example.org"}]
            case "tenants.Membership":
                self.first(User)
                return [{"role": Role.OWNER}, {"role": Role.MEMBER, "user": self.made[User][1]}]
            case "tenants.Invitation":
                token = digest(f"invitation {self.token}".encode(), settings.KEY_PEPPER)
                return [{"digest": token, "accepted_at": None, "withdrawn_at": None, "accepted_by": None,
                         "expires_at": now + timedelta(days=1)}]  # fmt: skip
            case "tenants.ApiKey":
                # The first belongs to the tenant, so that two owners see one key.
                common = {"enabled": True, "previous_digest": None, "previous_expires_at": None, "imported": False}
                return [
                    {**common, "prefix": f"{self.tag}0", "user": None},
                    {**common, "prefix": f"{self.tag}1"},
                    {**common, "prefix": f"{self.tag}2", "revoked_at": now},
                ]
            case "tenants.ManagementToken":
                return [{"prefix": self.tag, "scopes": ["read"]}]
            case "tenants.IPRule":
                tenant, key = self.first(Tenant), self.first(ApiKey)
                subjects = ({"tenant": tenant}, {"key": key}, {"acts_as": key})
                empty = dict.fromkeys(("tenant", "key", "acts_as"))
                return [{**empty, "cidr": "10.0.0.0/8", "action": "allow", **subject} for subject in subjects]
            case "tenants.Limit":
                key = self.first(ApiKey)
                rows = [of_limit(tenant=self.first(Tenant)), of_limit(user=self.first(User)), of_limit(key=key)]
                return [*rows, {**of_limit(key=key), "metric": "cost", "window": "month"}]
            case "proxy.Backend":
                return [{"transport": "httpx"}, {"name": self.tag, "proxy_url": "", "url": "http://127.0.0.1:9"}]
            case "proxy.BackendReport":
                return [report_models(self.text(model._meta.get_field("problem")))]
            case "proxy.ModelJob":
                return [{"state": state} for state in ModelJob.State]
            case "proxy.LimitAlert":
                text = self.text(model._meta.get_field("body"))
                return [{"body": {"threshold": 80, "limit": {"text": text}, "text": text}}]
            case "proxy.Delivery":
                return [{"email": ""}, {"webhook": None}]
            case "proxy.RefusalCount":
                return [{"key_prefix": f"{self.tag}0"}]
            case "proxy.ModelPolicy":
                return [{"load_options": {"num_gpu": 1}}]
            case "usage.UsageRecord":
                text = self.text(model._meta.get_field("backend"))[:100]
                routing = {"warm": True, "busy": 1, "of": 2, "failed": [[text, text]], "limits": [[1, 2, 3]]}
                return [{"outcome": outcome, "routing": json.dumps(routing)} for outcome in Outcome.values]
            case "usage.StoredText":
                self.first(UsageRecord)
                return [{"record_id": record.pk} for record in self.made[UsageRecord]]
            case "admin.LogEntry":
                return [{"action_flag": CHANGE, "object_id": str(self.first(Tenant).pk)}]
            case "tenants.AuditEntry":
                tenant = self.first(Tenant)
                text = self.text(model._meta.get_field("object_repr"))
                return [{"object_id": tenant.pk, "object_pk": str(tenant.pk), "action": 1, "actor": self.first(User),
                         "changes": {"name": [text, text]}, "serialized_data": None, "additional_data": None,
                         "remote_addr": "127.0.0.1"}]  # fmt: skip
            case "account.EmailAddress":
                self.first(User)
                return [
                    {"user": user, "email": user.email, "verified": True, "primary": True} for user in self.made[User]
                ]
            case "mfa.Authenticator":
                secret = MFAAdapter().encrypt("JBSWY3DPEHPK3PXP")
                return [
                    {"type": "totp", "data": {"secret": secret}},
                    {"type": "webauthn", "data": {"name": self.text(model._meta.pk), "credential": passkey()}},
                ]
        return [{}]

    def value(self, model: Model, field: models.Field) -> Any:
        """What fits the kind of a column."""
        if isinstance(field, models.ForeignKey):
            to = field.remote_field.model
            if to is ContentType:
                return ContentType.objects.get_for_model(Tenant)
            if to is model or to._meta.label in NOT_MADE:
                return None
            return self.first(to)
        if isinstance(field, models.DateTimeField):
            if field.null and field.name != "last_login":
                return None
            # What machines must be heard of lately to be shown stays so during the walk.
            lasts = field.name in ("expires_at", "seen_at", "updated_at")
            return timezone.now() + timedelta(days=1) if lasts else timezone.now()
        if field.choices:
            return field.get_default() if field.has_default() else field.choices[0][0]
        if isinstance(field, models.JSONField):
            text = self.text(field)
            kind = field.default if callable(field.default) else None
            return [text] if kind is list else {text: text} if kind is dict else None if field.null else text
        if isinstance(field, models.EmailField) and not field.unique:
            return self.text(field)[: field.max_length]
        if isinstance(field, models.GenericIPAddressField):
            return "127.0.0.1"
        if isinstance(field, models.UUIDField):
            return uuid.uuid4()
        if isinstance(field, models.CharField | models.TextField):
            return self.text(field)[: field.max_length]
        if isinstance(field, models.BinaryField):
            return None if field.null else secrets.token_bytes(field.max_length or 32)
        if isinstance(field, models.DateField):
            return timezone.now().date()
        if field.has_default():
            return field.get_default()
        if field.null:
            return None
        if isinstance(field, models.BooleanField):
            return False
        if isinstance(field, models.DurationField):
            return timedelta(1)
        if isinstance(field, models.IntegerField | models.DecimalField | models.FloatField):
            return 1
        raise CannotBeMade(f"tests/walk/rows.py knows no value for the column {field} ({type(field).__name__}).")


def has_one_row(model: Model) -> bool:
    """Whether the table is a single row of settings: its key is always 1."""
    rules = [str(rule) for rule in model._meta.constraints if isinstance(rule, models.CheckConstraint)]
    return any("condition=(AND: ('id', 1))" in rule for rule in rules)


def belongs_to_a_tenant(model: Model, seen: frozenset[Model] = frozenset()) -> bool:
    """Whether a table's rows are some tenant's, by a chain of foreign keys to it or to a person."""
    if model in (Tenant, User):
        return True
    ways = [field.remote_field.model for field in model._meta.concrete_fields if isinstance(field, models.ForeignKey)]
    return any(belongs_to_a_tenant(to, seen | {model}) for to in ways if to not in seen | {model})
