"""API keys, and where their secrets come from."""

from collections.abc import Hashable, Iterable
from typing import Any

from django.core.exceptions import ValidationError
from django.utils import timezone

from proxy.declared import fields
from proxy.declared.fields import Field, Wrong
from proxy.declared.kinds.base import Entry, Kind, columns
from proxy.declared.world import World
from tenants import authority
from tenants.keys import NewKey, adopt, digests, has_our_form, issue
from tenants.models import ApiKey, Authority, Role


class Keys(Kind):
    """Found by prefix, by secret, or by tenant and name. What has no secret is given one, which is told once."""

    section, noun, model, required = "keys", "key", ApiKey, ("tenant", "name")
    secrets = ("secret_env", "secret_file", "digest")
    removal = "revoke"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.made: dict[str, NewKey] = {}
        self._secret: str | bytes | None = None

    def make_fields(self) -> Iterable[Field]:
        yield Field("tenant", "tenant", self.world.tenant, str)
        yield from columns(ApiKey, "name")
        yield Field("prefix", "prefix", fields.text, str, "")
        yield Field("user", "user", self.world.user, str, None, None)
        yield from columns(ApiKey, "enabled", models="models_allowed", expires="expires_at")
        yield from columns(
            ApiKey, "max_output_tokens", "may_infer", "may_list", "may_manage", "may_use_cloud", "may_be_in_path",
            "latency_class", "weight", "cache_policy",
        )  # fmt: skip

    def queryset(self) -> Iterable[Any]:
        # As the world has them: what is changed here is what others refer to.
        return self.world.keys.values()

    def identity(self, row: ApiKey) -> Hashable:
        return row.prefix

    def find(self, entry: Entry) -> ApiKey | None:
        self._secret = self._secret_of(entry)
        return self._existing(entry, self._secret)

    def fill(self, row: ApiKey, entry: Entry) -> None:
        user, enabled, bounds = row.user, row.enabled, {name: getattr(row, name) for name in authority.BOUNDS}
        self.set(row, {name: value for name, value in entry.values.items() if name != "prefix" or row.pk is None})
        self._give(row, entry, self._secret)
        if row.user is not None and (row.pk is None or row.user != user):
            self._check_member(row, row.user, entry)
        if row.pk is None and row.expires_at and row.expires_at <= timezone.now():
            raise Wrong("expires: that moment has passed, the key would never work.", entry.line_of("expires"))
        if row.enabled != enabled:
            row.switched_off_by = authority.switched(on=row.enabled, by=Authority.ADMINISTRATOR)["switched_off_by"]
        for name, before in bounds.items():
            if getattr(row, name) != before:
                setattr(row, f"{name}_by", Authority.ADMINISTRATOR)

    def _give(self, row: ApiKey, entry: Entry, secret: str | bytes | None) -> None:
        accepted = digests(secret) if isinstance(secret, str) else [secret]
        if secret is None or (row.digest and bytes(row.digest) in accepted):
            return
        entry.notes["secret"] = "replaced" if row.pk is not None else "given"
        if isinstance(secret, bytes):
            row.digest = secret
            return
        prefix = row.prefix
        adopt(row, secret)
        # Of a key in another form the prefix is only a name, and stays.
        row.prefix = prefix if row.imported and prefix else row.prefix

    def _check_member(self, row: ApiKey, user: Any, entry: Entry) -> None:
        role = user.declared_roles.get(row.tenant.name)
        if role not in (Role.OWNER, Role.MEMBER):
            found = f"is a {role} of" if role else "is not in"
            raise Wrong(
                f"user: {user} {found} {row.tenant}, and so has no keys there. Have the user say “tenants: "
                f"{{{row.tenant}: member}}”.",
                entry.line_of("user"),
            )

    def _secret_of(self, entry: Entry) -> str | bytes | None:
        """A secret, or its digest."""
        given = [name for name in self.secrets if name in entry.nodes]
        if len(given) > 1:
            raise Wrong(f"give one of {', '.join(given)}.", entry.line_of(given[1]))
        if not given:
            return None
        name = given[0]
        if name == "digest":
            try:
                digest = bytes.fromhex(fields.text(entry.nodes[name]))
            except ValueError:
                digest = b""
            if len(digest) != 32:
                raise Wrong("digest: write 64 hexadecimal digits.", entry.line_of(name))
            if not entry.values.get("prefix"):
                raise Wrong("digest: name the prefix of the key as well.", entry.line_of(name))
            return digest
        secret = self.world.secret_of(entry.nodes[name], in_file=name == "secret_file")
        if not has_our_form(secret.encode()) and not (
            16 <= len(secret.rstrip("=")) <= 256 and secret.isascii() and all("!" <= char <= "~" for char in secret)
        ):
            raise Wrong(f"{name}: a key has 16 to 256 printable ASCII characters, without blanks.", entry.line_of(name))
        return secret

    def _existing(self, entry: Entry, secret: str | bytes | None) -> ApiKey | None:
        prefix = entry.values.get("prefix", "")
        if isinstance(secret, str) and has_our_form(secret.encode()):
            if prefix and prefix != secret.split("_")[1]:
                raise Wrong("prefix: it is not that of the secret.", entry.line_of("prefix"))
            prefix = secret.split("_")[1]
        if prefix and (found := self.world.keys.get(prefix)):
            if found.tenant != entry.values["tenant"]:
                raise Wrong(f"the key {prefix} is of the tenant “{found.tenant}”. A key stays where it is.", entry.line)
            return found
        used = digests(secret) if isinstance(secret, str) else [secret] if secret else []
        if used and (found := ApiKey.objects.filter(digest__in=used).select_related("tenant", "user").first()):
            if found.revoked_at or found.tenant != entry.values["tenant"]:
                state = "is revoked" if found.revoked_at else f"is of the tenant “{found.tenant}”"
                raise Wrong(f"the key {found.prefix} has this secret and {state}. Use another secret.", entry.line)
            return self.world.keys[found.prefix]
        if prefix and ApiKey.objects.filter(prefix=prefix).exists():
            raise Wrong(f"the key {prefix} is revoked. Leave it out, or make another.", entry.line_of("prefix"))
        same = self.world.keys_named(entry.values["tenant"].name, entry.values["name"])
        if len(same) > 1:
            prefixes = ", ".join(sorted(key.prefix for key in same))
            raise Wrong(f"there are several keys of this name. Say which by its prefix: {prefixes}.", entry.line)
        return same[0] if same else None

    def check(self, row: ApiKey, entry: Entry) -> None:
        if row.digest:
            row.full_clean()
            return
        # It gets its secret when it is saved.
        row.clean()
        row.clean_fields(exclude=["digest", "prefix"])
        if row.prefix and not (len(row.prefix) == 8 and row.prefix.isascii() and row.prefix.isalnum()):
            raise ValidationError({"prefix": "The prefix of a new key has 8 letters and digits; or leave it out."})

    def save(self, row: ApiKey, entry: Entry) -> None:
        if not row.digest:
            new = issue(row, row.prefix)
            self.made[f"{row.tenant}/{row.name}"] = new
        else:
            row.save(update_fields=entry.columns)
        self.rows[self.identity(row)] = row
        self.world.know(row)

    def may_remove(self, row: ApiKey) -> bool:
        return row.tenant.archived_at is None

    def is_exported(self, row: ApiKey) -> bool:
        return row.tenant.archived_at is None

    def remove(self, row: ApiKey) -> None:
        row.revoke()

    def name_of(self, row: ApiKey) -> str:
        return f"{row.tenant}/{row.name}"
