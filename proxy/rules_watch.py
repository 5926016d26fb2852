"""Keeps the rules in memory up to date: a thread that asks the database for its revisions four times a second."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.db import DatabaseError, InterfaceError, connections
from django.db.models import Max
from django.utils import timezone

from proxy import pass_through
from proxy.backend_url import normalise_backend_url
from proxy.cache.policy import NOTHING_SAID, Purges, Settings
from proxy.cancellation import EFFECTIVE
from proxy.credentials import unseal
from proxy.default_models import CHAT, EMBEDDING
from proxy.ip_rules import normalised
from proxy.limits import recorded
from proxy.limits.compiling import compiled
from proxy.limits.subjects import LimitRow
from proxy.model_names import canonical_pattern
from proxy.models import Backend as BackendModel
from proxy.models import (
    CachePurge,
    CacheSettings,
    CallCancellation,
    DefaultModels,
    ModelAlias,
    ModelPolicy,
    PassThroughRoute,
)
from proxy.snapshot import Backend, IPRuleRow, KeyRow, Policy, Tables, ordered_policies
from proxy.triggers import CHANNEL
from tenants.models import IPRule, Limit, Tenant, User
from usage.costs import PriceRow
from usage.models import Price

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
RETRY_SECONDS = 0.5
# How often the limits are told what the roll-ups say.
RECORDED_SECONDS = 30.0


class RulesWatch:
    """`changed(tables)` is called in the watching thread whenever the tables are new, the first time included."""

    def __init__(self, changed: Callable[[Tables], None], zone: str = "UTC", using: str = "default") -> None:
        """`zone`: of the days of limits."""
        self._changed = changed
        self._zone = zone
        self._using = using
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._tables = Tables()
        self._loaded = False
        self._listener: Any = None
        self._failing = False
        self._recorded_at = 0.0
        self._summing: threading.Thread | None = None
        # What the roll-ups said last, and of which limits.
        self._summed: tuple[Sequence[LimitRow], Mapping[str, int]] | None = None
        # Monotonic time of the last answer of the database; how old the rules may be is judged by it.
        self.last_contact = 0.0
        self._thread = threading.Thread(target=self._run, name="rules", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._hurry.set()

    def look_now(self) -> None:
        """Has the next poll happen at once. PostgreSQL says by itself when something changes."""
        self._hurry.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._poll()
                self._wait()
            except (DatabaseError, InterfaceError, OSError) as exc:
                self._lost(exc)
            except Exception:
                # Whatever is in the tables, the next change of them must be heard (L5).
                logger.exception("The rules could not be read; the old ones stay in force")
                self._stop.wait(RETRY_SECONDS)
        self._close()

    def _lost(self, exc: Exception) -> None:
        if not self._failing:
            logger.warning("The database does not answer; the rules stay as they are (%s)", type(exc).__name__)
        self._failing = True
        self._close()
        self._stop.wait(RETRY_SECONDS)

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        try:
            if listener is not None:
                listener.close()
            connections[self._using].close()
        except Exception as exc:
            logger.debug("Closing a broken connection: %s", exc)

    def _poll(self) -> None:
        revisions = self._revisions()
        self.last_contact = time.monotonic()
        if not self._loaded or revisions != self._tables.revisions:
            tables = self._read()
            self._tables, self._loaded = tables, True
            self._changed(tables)
        else:
            self._hear_of_use()
        if self._failing:
            logger.warning("The database answers again")
            self._failing = False

    def _hear_of_use(self) -> None:
        """Has what was used added up now and then, in a thread of its own: no revocation waits for a month's sums."""
        summed, self._summed = self._summed, None
        if summed is not None and summed[0] is self._tables.limits and summed[1] != self._tables.recorded:
            self._tables = replace(self._tables, recorded=summed[1])
            self._changed(self._tables)
        is_at_it = self._summing is not None and self._summing.is_alive()
        if not is_at_it and time.monotonic() - self._recorded_at > RECORDED_SECONDS:
            self._recorded_at = time.monotonic()
            arguments = (self._tables.limits,)
            self._summing = threading.Thread(target=self._sum_up, args=arguments, name="what was used", daemon=True)
            self._summing.start()

    def _sum_up(self, limits: Sequence[LimitRow]) -> None:
        try:
            self._summed = limits, recorded.read(limits, self._zone, time.time(), self._using)
        except Exception as exc:
            # What was known before stays; in half a minute it is read again (L5).
            logger.warning("What was used of limits cannot be read (%s)", type(exc).__name__)
        finally:
            connections[self._using].close()

    def _revisions(self) -> dict[str, int]:
        with connections[self._using].cursor() as cursor:
            cursor.execute('SELECT "table", revision FROM proxy_configrevision')
            return dict(cursor.fetchall())

    def _read(self) -> Tables:
        """All tables whose revision changed, and the revisions, as of one moment."""
        with self._one_moment():
            revisions = self._revisions()
            old = self._tables
            groups: dict[str, Any] = {}
            for table, load in _LOADERS.items():
                if not self._loaded or revisions.get(table) != old.revisions.get(table):
                    groups.update(self._load(table, load))
            tables = replace(old, revisions=revisions, **groups)
            return replace(tables, recorded=self._recorded(tables)) if "limits" in groups else tables

    def _recorded(self, tables: Tables) -> Mapping[str, int]:
        """What the roll-ups say was used; what was known before, where that cannot be read."""
        self._recorded_at = time.monotonic()
        read = partial(recorded.read, tables.limits, self._zone, time.time())
        return self._load("what was used", read) or tables.recorded

    def _load(self, table: str, load: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        try:
            return load(self._using)
        except (DatabaseError, InterfaceError):
            raise
        except Exception:
            if not self._loaded:
                raise
            # Only SQL can write what the models cannot read. The other tables must be heard all the same (A7).
            logger.exception("What %s says now cannot be read; its old rows stay in force", table)
            return {}

    @contextmanager
    def _one_moment(self) -> Iterator[None]:
        # Not atomic(): on SQLite it would take the lock of the writer, only to read.
        connection = connections[self._using]
        postgresql = connection.vendor == "postgresql"
        with connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if postgresql else "BEGIN DEFERRED")
            try:
                yield
            finally:
                cursor.execute("ROLLBACK")

    def _wait(self) -> None:
        """Until the next poll is due, or PostgreSQL says that something changed."""
        if connections[self._using].vendor != "postgresql":
            self._hurry.wait(POLL_SECONDS)
            self._hurry.clear()
            return
        with connections[self._using].wrap_database_errors:
            if self._listener is None:
                self._listener = _listen(self._using)
            for _ in self._listener.notifies(timeout=POLL_SECONDS, stop_after=1):
                pass


def _listen(using: str) -> Any:
    import psycopg  # only where the database is PostgreSQL

    parameters = connections[using].get_connection_params()
    parameters = {
        name: value
        for name, value in parameters.items()
        if name not in ("cursor_factory", "context", "prepare_threshold")
    }
    listener = psycopg.connect(**parameters, autocommit=True)
    listener.execute(f"LISTEN {CHANNEL}")
    return listener


def _epoch(value: Any) -> float | None:
    """Epoch seconds of a timestamp as the drivers give it: PostgreSQL a datetime, SQLite the text that Django wrote."""
    if value is None:
        return None
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _tenants(using: str) -> dict[str, Any]:
    columns = (
        "id", "name", "enabled", "archived_at", "latency_class", "weight", "keeps_texts", "cache_policy", "cache_scope",
    )  # fmt: skip
    rows = list(Tenant.objects.using(using).values_list(*columns))
    return {
        "tenants": {pk: (name, enabled and archived is None) for pk, name, enabled, archived, *_ in rows},
        "shares": {pk: (latency_class, weight) for pk, _, _, _, latency_class, weight, *_ in rows},
        "keeping_texts": frozenset(pk for pk, *_, keeps_texts, _, _ in rows if keeps_texts),
        "cache_choices": {pk: (policy, scope) for pk, *_, policy, scope in rows},
    }


def _users(using: str) -> dict[str, Any]:
    rows = User.objects.using(using).values_list("id", "username", "is_active")
    return {"users": {pk: (name, active) for pk, name, active in rows}}


_KEY_COLUMNS = (
    "id, name, prefix, tenant_id, user_id, previous_expires_at, enabled, expires_at, revoked_at, "
    "models_allowed, may_infer, may_list, may_manage, may_use_cloud, may_be_in_path, max_output_tokens, "
    "digest, previous_digest, imported, latency_class, weight, cache_policy"
)


def _keys(using: str) -> dict[str, Any]:
    """Raw rows: there may be 100,000, and they must be in force within a second."""
    keys: dict[int, KeyRow] = {}
    digests: dict[bytes, tuple[int, bool]] = {}
    foreign = False
    with connections[using].cursor() as cursor:
        cursor.execute(f"SELECT {_KEY_COLUMNS} FROM tenants_apikey")  # noqa: S608 - a constant
        for row in cursor.fetchall():
            key_id = row[0]
            try:
                key = _key_row(row)
            except (ValueError, TypeError):
                # Only SQL can write such a row. Closed rather than open, and no hindrance to the others.
                logger.exception("The key %s cannot be read; it is not accepted until it is mended", row[2])
                continue
            keys[key_id] = key
            digests[bytes(row[16])] = (key_id, False)
            if row[17] is not None:
                digests[bytes(row[17])] = (key_id, True)
            foreign = foreign or bool(row[18])
    return {"keys": keys, "digests": digests, "foreign_keys": foreign}


def _key_row(row: Sequence[Any]) -> KeyRow:
    key_id, name, prefix, tenant_id, user_id = row[:5]
    models = row[9]
    return KeyRow(
        key_id,
        name,
        prefix,
        tenant_id,
        user_id,
        _epoch(row[5]),
        bool(row[6]),
        _epoch(row[7]),
        row[8] is not None,
        () if models in ("[]", []) else _patterns(models),
        (bool(row[10]), bool(row[11]), bool(row[12]), bool(row[13]), bool(row[14])),
        row[15],
        row[19],
        row[20],
        row[21],
    )


def _patterns(models: Any) -> tuple[str, ...]:
    names = json.loads(models) if isinstance(models, str) else models
    if not isinstance(names, list):
        raise TypeError("models_allowed is no list")
    return tuple(canonical_pattern(str(name)) for name in names)


def _ip_rules(using: str) -> dict[str, Any]:
    return {"ip_rules": ip_rules(using)}


def ip_rules(using: str = "default") -> tuple[IPRuleRow, ...]:
    columns = ("cidr", "action", "tenant_id", "key_id", "acts_as_id", "expires_at", "id", "by_owners")
    rules = []
    rows = IPRule.objects.using(using).values_list(*columns)
    for cidr, action, tenant, key, acts_as, expires_at, number, owners in rows:
        try:
            normalised(cidr)
        except ValueError:
            # Only SQL can write such a row. Closed rather than open: as a rule for nobody it shuts its scope.
            logger.error("The IP rule %r is no network; its scope is closed until it is mended", cidr)  # noqa: TRY400
            cidr, action = "0.0.0.0/0", "deny"
            rules.append(IPRuleRow("::/0", "deny", tenant, key, None, _epoch(expires_at), number, owners))
        rules.append(IPRuleRow(cidr, action, tenant, key, acts_as, _epoch(expires_at), number, owners))
    return tuple(rules)


def _limits(using: str) -> dict[str, Any]:
    rows = Limit.objects.using(using).select_related("tenant", "user", "key").order_by("id")
    return {"limits": tuple(compiled(row) for row in rows)}


def _backends(using: str) -> dict[str, Any]:
    backends = []
    for row in BackendModel.objects.using(using).filter(archived_at=None).order_by("id"):
        try:
            backends.append(backend_of(row))
        except ValueError as exc:
            logger.error("Backend %s is left out: %s", row.name, exc)  # noqa: TRY400
    return {"backends": tuple(backends)}


def backend_of(row: BackendModel) -> Backend:
    """Raises ValueError for an address that no backend may have (B14)."""
    return Backend(
        id=row.id,
        name=row.name,
        url=normalise_backend_url(row.url),
        enabled=row.enabled,
        slots=row.slots,
        context_length=row.context_length,
        transport=row.transport,
        ca_certificates=row.ca_certificates,
        credential=_credential(row),
        client_certificate=row.client_certificate,
        client_key=_unsealed(row, row.client_key_encrypted, "key of the client certificate"),
        proxy_url=normalise_backend_url(row.proxy_url) if row.proxy_url else "",
        proxy_credential=_proxy_credential(row),
        http2=row.http2,
    )


def _credential(row: BackendModel) -> tuple[bytes, bytes] | None:
    value = _unsealed(row, row.credential_encrypted, "credential") if row.credential_header else ""
    return (row.credential_header.lower().encode("ascii"), value.encode("latin-1")) if value else None


def _proxy_credential(row: BackendModel) -> tuple[bytes, bytes] | None:
    value = _unsealed(row, row.proxy_credential_encrypted, "credential of the proxy") if row.proxy_url else ""
    user, _, password = value.encode().partition(b":")
    return (user, password) if value else None


def _unsealed(row: BackendModel, sealed: bytes | memoryview | None, what: str) -> str:
    if not sealed:
        return ""
    try:
        return unseal(sealed)
    except ValueError:
        logger.error("The %s of backend %s cannot be read; enter it again", what, row.name)  # noqa: TRY400
        return ""


def _aliases(using: str) -> dict[str, Any]:
    rows = ModelAlias.objects.using(using).filter(enabled=True).values_list("pattern", "model")
    return {"aliases": tuple(rows)}


def _default_models(using: str) -> dict[str, Any]:
    row = DefaultModels.objects.using(using).filter(id=1).first()
    return {"default_models": {CHAT: row.chat_model, EMBEDDING: row.embedding_model} if row else {}}


def _policies(using: str) -> dict[str, Any]:
    return {"policies": policies(using)}


def policies(using: str = "default") -> tuple[Policy, ...]:
    """The first whose pattern fits a model counts."""
    rows = [
        Policy(
            pattern=row.pattern,
            num_ctx=row.num_ctx,
            load_options=tuple(sorted(row.load_options.items())),
            keep_alive=_keep_alive(row.keep_alive),
            max_output_tokens=row.max_output_tokens,
        )
        for row in ModelPolicy.objects.using(using).all()
    ]
    return ordered_policies(rows)


def tables_now(zone: str, using: str = "default") -> Tables:
    """What is in all tables, for who asks once. Raises DatabaseError. `zone`: of the days of limits."""
    groups: dict[str, Any] = {}
    for load in _LOADERS.values():
        groups.update(load(using))
    tables = Tables(**groups)
    return replace(tables, recorded=recorded.read(tables.limits, zone, time.time(), using))


def _keep_alive(value: str) -> str | float | None:
    """Ollama wants bare numbers as numbers: "-1" without a unit is an error there."""
    if not value:
        return None
    try:
        return float(value) if "." in value else int(value)
    except ValueError:
        return value


def _routes(using: str) -> dict[str, Any]:
    found = []
    for row in PassThroughRoute.objects.using(using).filter(enabled=True):
        try:
            pass_through.refuse(row.path, row.method, row.right)
        except ValueError as exc:
            logger.error("The pass-through route %s is left out: %s", row, exc)  # noqa: TRY400
        else:
            found.append(pass_through.route(row.path, row.method, row.right, names_model=row.names_model))
    return {"routes": pass_through.table(found)}


def _prices(using: str) -> dict[str, Any]:
    return {"prices": price_rows(using)}


def price_rows(using: str = "default") -> tuple[PriceRow, ...]:
    """All prices, of whatever time, as calls are priced by them."""
    columns = ("input_nano", "output_nano", "gpu_second_nano", "kwh_nano", "watts")
    rows = Price.objects.using(using).values_list("id", "model", "valid_from", "backend", *columns)
    return tuple(PriceRow(pk, canonical_pattern(model), *rest) for pk, model, *rest in rows)


def _cache_settings(using: str) -> dict[str, Any]:
    row = CacheSettings.objects.using(using).filter(id=1).first()
    settings = Settings(row.policy, row.ttl_seconds, row.charges) if row else NOTHING_SAID
    return {"cache_settings": settings}


def _purges(using: str) -> dict[str, Any]:
    rows = CachePurge.objects.using(using).order_by().values_list("tenant_id", "model").annotate(latest=Max("id"))
    of_all = 0
    tenants: dict[int, int] = {}
    models: dict[str, int] = {}
    for tenant, model, latest in rows:
        if tenant is not None:
            tenants[tenant] = max(tenants.get(tenant, 0), latest)
        elif model:
            models[canonical_pattern(model)] = latest
        else:
            of_all = latest
    return {"purges": Purges(of_all, tenants, models)}


def _cancelled(using: str) -> dict[str, Any]:
    recent = CallCancellation.objects.using(using).filter(requested_at__gt=timezone.now() - EFFECTIVE)
    return {"cancelled": dict(recent.values_list("call_id", "by"))}


_LOADERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "tenants_tenant": _tenants,
    "tenants_user": _users,
    "tenants_apikey": _keys,
    "tenants_iprule": _ip_rules,
    "tenants_limit": _limits,
    "proxy_backend": _backends,
    "proxy_modelalias": _aliases,
    "proxy_defaultmodels": _default_models,
    "proxy_modelpolicy": _policies,
    "proxy_passthroughroute": _routes,
    "usage_price": _prices,
    "proxy_callcancellation": _cancelled,
    "proxy_cachesettings": _cache_settings,
    "proxy_cachepurge": _purges,
}
