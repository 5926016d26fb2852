"""Brings the servers, keys and rules of a config.json into the tables.

Read again, the same file changes nothing. What it has come to say otherwise follows: a rule that it no longer holds is
deleted, a server or key switched off, and on again when the file names it again. What was decided here in the meantime
(a key revoked, a server deleted) stays so, and rows that did not come from the file are never touched.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Model, Q

from proxy.config_json.reading import BadConfig, ConfigJson, RateLimit, read
from proxy.models import Backend, ConfigImport
from proxy.own_listeners import address_of_a_backend
from tenants import authority
from tenants.announcements import rules_changed
from tenants.keys import adopt, digests
from tenants.models import ApiKey, Authority, IPRule, Limit, Tenant

TENANT = "default"
NOTE = "config.json"


@dataclass(frozen=True)
class Report:
    """What was done for each field, in the order of the file that their README shows."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    changed: bool = False

    @property
    def by_field(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, text in self.lines:
            found.setdefault(name, []).append(text)
        return found


def import_file(
    path: str | os.PathLike[str],
    *,
    tenant: str = TENANT,
    refuse_server: Callable[[str], None] = lambda url: None,
) -> Report:
    """Imports all of a file or nothing. Raises BadConfig, ValidationError, DatabaseError.

    `tenant`: whose the keys are; made if there is none of that name. `refuse_server` raises ValueError for a server
    that must not be.
    """
    config = read(path)
    with transaction.atomic():
        memory = ConfigImport.objects.get_or_create(file=str(Path(path).resolve()))[0]
        memory = ConfigImport.objects.select_for_update().get(pk=memory.pk)
        taking = _Import(config, memory, refuse_server)
        taking.run(tenant)
        if taking.problems:
            raise BadConfig(*taking.problems)
        if taking.changed:
            memory.save()
            rules_changed()
    return Report(taking.lines, taking.changed)


class _Import:
    def __init__(self, config: ConfigJson, memory: ConfigImport, refuse_server: Callable[[str], None]) -> None:
        self.config = config
        self.memory = memory
        self.refuse_server = refuse_server
        self.lines: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self.changed = False

    def run(self, tenant: str) -> None:
        config = self.config
        self._each("ollamaAddresses", config.servers, self._server)
        self._setting("gatewayAddress", "listen", "PORT or serve --listen")
        self._setting("logging", "logging", "ACCESS_LOG and LOG_LEVEL")
        self._setting("authHeaderName", "auth_header", "AUTH_HEADER")
        self._keys(tenant)
        if config.rate_limit is not None:
            self._rate_limit(config.rate_limit)
        self._each("security.allowIps", config.allow, lambda cidr: self._ip_rule("allow", cidr))
        self._each("security.denyIps", config.deny, lambda cidr: self._ip_rule("deny", cidr))
        self._setting("metrics.enabled", "metrics_enabled", "METRICS_ENABLED")
        self._setting("metrics.endpoint", "metrics_path", "METRICS_PATH")
        self._setting("metrics.namespace", "metrics_namespace", "METRICS_NAMESPACE")
        for name in config.unknown:
            self._say(name, "not known, and left out")

    def _say(self, field: str, text: str, *, changed: bool = False) -> None:
        self.lines.append((field, text))
        self.changed |= changed

    def _setting(self, field: str, attribute: str, variables: str) -> None:
        """What is read at the start of the gateway, from the file that CONFIG_FILE names."""
        value = getattr(self.config, attribute)
        if value is None:
            return
        if attribute == "listen":
            value = f"{value[0]}:{value[1]}"
        shown = json.dumps(value) if isinstance(value, bool) else value
        if not settings.CONFIG_FILE or str(Path(settings.CONFIG_FILE).resolve()) != self.memory.file:
            how = f"not a row but a setting: start the gateway with CONFIG_FILE={self.memory.file}, or set {variables}"
        elif getattr(settings.CONFIG_JSON, attribute) == getattr(self.config, attribute):
            how = f"in force since the start, unless {variables} says otherwise"
        else:
            how = "takes effect when the gateway is started again"
        self._say(field, f"{shown}: {how}")

    def _each(self, field: str, values: tuple[str, ...] | None, take: Callable[[str], None]) -> None:
        if values is None:
            return
        if not values:
            self._say(field, "none")
        for value in values:
            take(value)
        self._take_back(field, set(values))

    def _made(self, field: str) -> dict[str, int]:
        """What earlier readings made for a field."""
        made: dict[str, int] = self.memory.made.setdefault(field, {})
        return made

    def _is_back(self, row: Backend | ApiKey) -> bool:
        """Whether an earlier reading switched a row off that the file names again; it is switched on."""
        if (label := _label(row)) not in self.memory.taken_back:
            return False
        self.memory.taken_back.remove(label)
        _switch(row, on=True)
        return True

    def _switch_off(self, row: Backend | ApiKey) -> None:
        _switch(row, on=False)
        self.memory.taken_back.append(_label(row))

    def _take_back(self, field: str, named: set[str]) -> None:
        """What the file no longer names."""
        made = self._made(field)
        for value in [value for value in made if value not in named]:
            if field == "ollamaAddresses":
                backend = Backend.objects.current().filter(pk=made[value]).first()
                if backend and backend.enabled and not backend.set_by_environment:
                    self._switch_off(backend)
                    self._say(field, f"{value} is no longer named: switched off {backend}", changed=True)
            else:
                rule = IPRule.objects.filter(pk=made.pop(value), note=NOTE).first()
                if rule:
                    rule.delete()
                    self._say(field, f"{value} is no longer named: deleted the rule", changed=True)

    def _server(self, url: str) -> None:
        field = "ollamaAddresses"
        try:
            self.refuse_server(url)
            address_of_a_backend(url)
        except (ValueError, ValidationError) as exc:
            reason = " ".join(exc.messages) if isinstance(exc, ValidationError) else exc
            self.problems.append(f"{field}: {url}: {reason}")
            return
        made = self._made(field)
        found = Backend.objects.current().filter(Q(pk=made.get(url, 0)) | Q(url=url)).order_by("pk").first()
        if found is None and url in made:
            self._say(field, f"{url} was deleted here, and stays so")
        elif found is None:
            backend = Backend(name=_free_name(url), url=url)
            backend.full_clean()
            backend.save()
            made[url] = backend.pk
            self._say(field, f"added {url} as the backend {backend}", changed=True)
        elif self._is_back(found):
            self._say(field, f"{url} is named again: switched on {found}", changed=True)
        else:
            off = "" if found.enabled else ", which is switched off here"
            self._say(field, f"{url} is the backend {found} already{off}")

    def _keys(self, tenant: str) -> None:
        field, keys = "apiKeys", self.config.keys
        if keys is None:
            return
        if not keys:
            self._say(field, "none; make one with: manage.py create_key --tenant TENANT --name NAME")
        made = self._made(field)
        named = set()
        for number, key in enumerate(keys, 1):
            found = ApiKey.objects.filter(Q(digest__in=digests(key)) | Q(previous_digest__in=digests(key))).first()
            if found is None:
                found = _new_key(tenant, key, number)
                made[str(found.pk)] = found.pk
                self._say(field, f"imported number {number} as {_shown(found)}", changed=True)
            elif self._is_back(found):
                self._say(field, f"number {number} is named again: switched on {_shown(found)}", changed=True)
            else:
                state = "" if found.state == "active" else f", which is {found.state} here"
                self._say(field, f"number {number} is {_shown(found)} already{state}")
            named.add(found.pk)
        for row in ApiKey.objects.filter(pk__in=[pk for pk in made.values() if pk not in named], enabled=True):
            if row.revoked_at is None:
                self._switch_off(row)
                self._say(field, f"{_shown(row)} is no longer named: switched it off", changed=True)

    def _rate_limit(self, limit: RateLimit) -> None:
        field = "rateLimit"
        made = self._made(field)
        same = Q(scope="address", metric="requests", window="seconds", window_seconds=limit.seconds, model="")
        found = Limit.objects.filter(Q(pk=made.get(field, 0)) | same).order_by("pk").first()
        if found is None and field in made:
            self._say(field, "its limit was deleted here, and stays so")
            return
        row = found or Limit(scope="address", metric="requests", window="seconds")
        mode = Limit.Mode.ENFORCE if limit.enabled else Limit.Mode.SHADOW
        wanted = {"window_seconds": limit.seconds, "amount": limit.requests, "mode": mode}
        differs = found is None or any(getattr(row, name) != value for name, value in wanted.items())
        if differs and (found is None or made.get(field) == row.pk):
            for name, value in wanted.items():
                setattr(row, name, value)
            row.full_clean()
            row.save()
            made[field] = row.pk
        elif differs:
            self._say(field, f"there is a limit of this kind already, and it stays as it is: {row}")
            return
        said = "" if limit.enabled else ", which is only counted: it is not enabled"
        verb = "set" if differs else "set already:"
        text = f"{verb} {row.amount} requests in {row.window_seconds} s per client address{said}"
        self._say(field, text, changed=differs)

    def _ip_rule(self, action: str, cidr: str) -> None:
        field = f"security.{action}Ips"
        made = self._made(field)
        current = IPRule.objects.filter(cidr=cidr, action=action, tenant=None, key=None, acts_as=None, expires_at=None)
        if current.exists():
            self._say(field, f"{action} {cidr} is a rule already")
        elif cidr in made:
            self._say(field, f"{action} {cidr} was deleted here, and stays so")
        else:
            rule = IPRule(cidr=str(ip_network(cidr)), action=action, note=NOTE)
            rule.full_clean()
            rule.save()
            made[cidr] = rule.pk
            self._say(field, f"added the rule {rule} for all", changed=True)


def _switch(row: Backend | ApiKey, *, on: bool) -> None:
    # Whoever owns the file decides as an administrator does.
    values = authority.switched(on=on, by=Authority.ADMINISTRATOR) if isinstance(row, ApiKey) else {"enabled": on}
    for name, value in values.items():
        setattr(row, name, value)
    row.save(update_fields=list(values))


def _new_key(tenant: str, key: str, number: int) -> ApiKey:
    home = Tenant.objects.filter(name=tenant).first()
    if home is None:
        home = Tenant(name=tenant)
        home.full_clean()
        home.save()
    if home.archived_at or not home.enabled:
        raise ValidationError(f"The tenant “{home}” is off, so its keys would not work. Switch it on in the admin.")
    row = ApiKey(tenant=home, name=f"{NOTE} {number}")
    adopt(row, key)
    row.full_clean()
    row.save(force_insert=True)
    return row


def _shown(key: ApiKey) -> str:
    return f"the key {key.prefix} (“{key.name}”)"


def _label(row: Model) -> str:
    return f"{row._meta.model_name} {row.pk}"


def _free_name(url: str) -> str:
    """What a server is called: its host and port, without what another one is called already."""
    parts = urlsplit(url)
    return next(name for name in _names(f"{parts.hostname}-{parts.port}"[:90]) if not _taken(name))


def _names(base: str) -> Iterator[str]:
    yield base
    number = 2
    while True:
        yield f"{base}-{number}"
        number += 1


def _taken(name: str) -> bool:
    return Backend.objects.filter(name=name).exists()
