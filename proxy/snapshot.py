"""The control plane, frozen: all that a call needs to know of the rules, swapped whole when they change.

Reading is proxy/rules_watch.py's; nothing here does I/O. A snapshot keeps the answers it has worked out (a key's
grant, a name's meaning) because it never changes; the next snapshot begins without them.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from proxy import default_models
from proxy.cache import policy as cache_policies
from proxy.cache.policy import NO_PURGES, NOTHING_KEPT, NOTHING_SAID, Purges
from proxy.cache.policy import Rule as CacheRule
from proxy.cache.policy import Settings as CacheSettings
from proxy.client_address import Address, Network
from proxy.default_models import NOTHING, Installed
from proxy.dialects.base import Pin
from proxy.ip_rules import NO_RULES, Entry, IPRules, RulesOfBoth, normalised
from proxy.limits.rules import Rule
from proxy.limits.subjects import LimitRow, LimitTable
from proxy.model_names import InvalidModelName, ModelName, canonical_pattern
from proxy.model_names import parse as parse_model_name
from proxy.routes import Route
from tenants.models.people import ORDINARY_WEIGHT
from usage.costs import PriceRow

# Worked-out answers kept per snapshot; junk names and keys must not grow it without bound.
REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Key:
    """A key that may be used now, and whose it is."""

    id: int
    name: str
    prefix: str
    tenant_id: int
    tenant_name: str
    user_id: int | None
    user_name: str
    expires_at: float | None  # epoch seconds
    models: tuple[str, ...]
    may_infer: bool
    may_list: bool
    may_manage: bool
    may_use_cloud: bool
    may_be_in_path: bool
    max_output_tokens: int | None
    tenant_ip: IPRules | RulesOfBoth
    key_ip: IPRules | RulesOfBoth
    rules: tuple[Rule, ...]
    # For the scheduling of a busy fleet. The weight of a key is its share of what its tenant gets.
    latency_class: str = "interactive"
    weight: int = ORDINARY_WEIGHT
    cache: CacheRule | None = None  # None: its answers are its calls' alone
    tenant_weight: int = ORDINARY_WEIGHT
    keeps_texts: bool = False  # whether what its calls ask and are answered is stored
    acting: bool = False  # stands in for a caller without a key, whose credential is their place in the network

    def may_use(self, canonical: str) -> bool:
        return not self.models or any(fnmatchcase(canonical, pattern) for pattern in self.models)


class KeyRow(NamedTuple):
    """One row of tenants.ApiKey as it was read. A tuple, because there may be 100,000 and most are never used."""

    id: int
    name: str
    prefix: str
    tenant_id: int
    user_id: int | None
    previous_expires_at: float | None
    enabled: bool
    expires_at: float | None
    revoked: bool
    models: tuple[str, ...]
    rights: tuple[bool, bool, bool, bool, bool]  # infer, list, manage, use cloud, be in path
    max_output_tokens: int | None
    latency_class: str = ""  # empty: as the tenant
    weight: int | None = None
    cache_policy: str = ""  # empty: as the tenant


@dataclass(frozen=True, slots=True)
class Backend:
    """One row of proxy.Backend. Two that are equal are the same to the data plane."""

    id: int
    name: str
    url: str
    enabled: bool
    slots: int
    context_length: int | None
    transport: str
    ca_certificates: str = field(repr=False, default="")
    credential: tuple[bytes, bytes] | None = field(repr=False, default=None)  # header name and value
    client_certificate: str = field(repr=False, default="")
    client_key: str = field(repr=False, default="")
    proxy_url: str = ""
    proxy_credential: tuple[bytes, bytes] | None = field(repr=False, default=None)  # user and password
    http2: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """One row of proxy.ModelPolicy."""

    pattern: str
    num_ctx: int | None = None
    load_options: tuple[tuple[str, Any], ...] = ()
    keep_alive: str | float | None = None
    max_output_tokens: int | None = None


NO_POLICY = Policy("*")


class IPRuleRow(NamedTuple):
    """One row of tenants.IPRule."""

    network: str
    action: str
    tenant_id: int | None = None
    key_id: int | None = None
    acts_as_id: int | None = None
    expires_at: float | None = None
    id: int = 0
    by_owners: bool = False

    @property
    def is_for_all(self) -> bool:
        """A rule that lets a network act as a key says nothing about the others: they use keys of their own."""
        return self.tenant_id is self.key_id is self.acts_as_id is None


@dataclass(frozen=True, slots=True)
class Acting:
    """Calls without a key from a network are made with this one."""

    network: Network
    key_id: int
    expires_at: float | None
    entry: Entry  # for its count


@dataclass(frozen=True, slots=True)
class Tables:
    """The rows a snapshot is made of, each group replaced when its table changes."""

    revisions: Mapping[str, int] = field(default_factory=dict)
    tenants: Mapping[int, tuple[str, bool]] = field(default_factory=dict)  # id → (name, usable)
    shares: Mapping[int, tuple[str, int]] = field(default_factory=dict)  # tenant id → (latency class, weight)
    keeping_texts: frozenset[int] = frozenset()  # ids of tenants
    # tenant id → (policy, with whom it shares answers)
    cache_choices: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    cache_settings: CacheSettings = NOTHING_SAID
    purges: Purges = NO_PURGES
    users: Mapping[int, tuple[str, bool]] = field(default_factory=dict)
    keys: Mapping[int, KeyRow] = field(default_factory=dict)
    digests: Mapping[bytes, tuple[int, bool]] = field(default_factory=dict)  # → (key id, is the previous secret)
    foreign_keys: bool = False  # whether keys of another form were imported
    ip_rules: tuple[IPRuleRow, ...] = ()
    limits: tuple[LimitRow, ...] = ()
    recorded: Mapping[str, int] = field(default_factory=dict)  # limits/recorded.py
    aliases: tuple[tuple[str, str], ...] = ()  # (pattern, model or one of default_models.WORDS)
    default_models: Mapping[str, str] = field(default_factory=dict)  # those that are chosen, by @chat and @embedding
    policies: tuple[Policy, ...] = ()
    backends: tuple[Backend, ...] = ()
    routes: Mapping[bytes, Mapping[str, Route]] = field(default_factory=dict)  # pass_through.py
    prices: tuple[PriceRow, ...] = ()
    cancelled: Mapping[str, str] = field(default_factory=dict)  # call id → by whom


class Snapshot:
    def __init__(self, tables: Tables, now: float | None = None, cache_defaults: CacheSettings = NOTHING_KEPT) -> None:
        """`cache_defaults`: what holds where the tables say nothing."""
        self.tables = tables
        self._cache_defaults = cache_defaults
        now = time.time() if now is None else now
        current = current_rules(tables.ip_rules, now)
        self._limits = LimitTable(tables.limits, now)
        # An expired rule, and an override that ends, must stop to act without any change of the tables.
        ends = [rule.expires_at for rule in current if rule.expires_at is not None]
        if self._limits.valid_until is not None:
            ends.append(self._limits.valid_until)
        self.valid_until = min(ends, default=None)
        # The IP rules that decided since `take_hits` was last asked.
        self._tally: list[Entry] = []
        self.ip_all = rules_for_all(current, self._tally)
        self.acting = _acting(current)
        self._tenant_ip = _grouped(((rule.tenant_id, rule) for rule in current), self._tally)
        self._key_ip = _grouped(((rule.key_id, rule) for rule in current), self._tally)
        self._aliases = _by_precision(tables.aliases)
        self._keys: dict[int, Key | None] = {}
        self._acting_keys: dict[int, Key] = {}
        # What policy sets, by output cap and rights of the key, pattern of the policy.
        self.pins: dict[tuple[int | None, bool, bool, str], Pin] = {}
        self._models: dict[tuple[tuple[str, ...], bool, str], Model] = {}
        self._models_with = NOTHING  # the installed models that those answers were worked out with
        self._defaults = {target: _model_name(name) for target, name in tables.default_models.items()}

    def refreshed(self, now: float) -> "Snapshot":
        """The same rules, less those that have expired."""
        return Snapshot(self.tables, now, self._cache_defaults)

    def take_hits(self) -> dict[int, int]:
        """How often each IP rule decided since this was last asked, by number of the rule."""
        hits: dict[int, int] = {}
        for entry in self._tally:
            if entry.id:
                hits[entry.id] = hits.get(entry.id, 0) + entry.hits
            entry.hits = 0
        self._tally.clear()
        return hits

    def key_by_digest(self, digest: bytes, now: float) -> Key | None:
        """The usable key with a secret; None for unknown, revoked, expired, disabled."""
        found = self.tables.digests.get(digest)
        if found is None:
            return None
        key_id, previous = found
        if previous and (self.tables.keys[key_id].previous_expires_at or 0) <= now:
            return None
        return self.key(key_id, now)

    def key(self, key_id: int, now: float) -> Key | None:
        """A usable key by its row."""
        try:
            key = self._keys[key_id]
        except KeyError:
            key = self._keys[key_id] = self._compile(key_id)
        if key is not None and key.expires_at is not None and key.expires_at <= now:
            return None
        return key

    def why_unusable(self, row: KeyRow, now: float) -> str:
        """What a key is refused for wherever it comes from, as a code; empty if it may be used."""
        if row.revoked:
            return "key_revoked"
        if not row.enabled:
            return "key_disabled"
        if row.expires_at is not None and row.expires_at <= now:
            return "key_expired"
        if not self.tables.tenants.get(row.tenant_id, ("", False))[1]:
            return "tenant_disabled"
        if row.user_id and not self.tables.users.get(row.user_id, ("", False))[1]:
            return "user_disabled"
        return ""

    def _compile(self, key_id: int) -> Key | None:
        row = self.tables.keys.get(key_id)
        # When it ends is looked at with each call.
        return None if row is None or self.why_unusable(row, float("-inf")) else self.grant(row)

    def grant(self, row: KeyRow) -> Key:
        """What a key may do, whether or not it may be used now."""
        tenant_name = self.tables.tenants.get(row.tenant_id, ("", False))[0]
        user_name = self.tables.users.get(row.user_id, ("", False))[0] if row.user_id else ""
        infer, listing, manage, cloud, in_path = row.rights
        tenant_class, tenant_weight = self.tables.shares.get(row.tenant_id, ("interactive", ORDINARY_WEIGHT))
        return Key(
            id=row.id,
            name=row.name,
            prefix=row.prefix,
            tenant_id=row.tenant_id,
            tenant_name=tenant_name,
            user_id=row.user_id,
            user_name=user_name,
            expires_at=row.expires_at,
            models=row.models,
            may_infer=infer,
            may_list=listing,
            may_manage=manage,
            may_use_cloud=cloud,
            may_be_in_path=in_path,
            max_output_tokens=row.max_output_tokens,
            tenant_ip=self._tenant_ip.get(row.tenant_id, NO_RULES),
            key_ip=self._key_ip.get(row.id, NO_RULES),
            rules=self._limits.of_key(row.id, row.prefix, row.tenant_id, row.user_id),
            latency_class=tenant_class if tenant_class == "batch" else row.latency_class or tenant_class,
            weight=row.weight or ORDINARY_WEIGHT,
            cache=self._cache_rule(row),
            tenant_weight=tenant_weight,
            keeps_texts=row.tenant_id in self.tables.keeping_texts,
        )

    def _cache_rule(self, row: KeyRow) -> CacheRule | None:
        """The nearest policy that is said counts: of the key, of its tenant, of the installation."""
        tables, defaults = self.tables, self._cache_defaults
        of_tenant, sharing = tables.cache_choices.get(row.tenant_id, ("", cache_policies.TENANT))
        chosen = row.cache_policy or of_tenant or tables.cache_settings.policy or defaults.policy
        if chosen not in ("deterministic", "all"):
            return None
        # What is shared may be of any tenant that is purged, also of one that shares no more.
        purged = tables.purges.tenants if sharing == cache_policies.SHARED else [row.tenant_id]
        return CacheRule(
            policy="all" if chosen == "all" else "deterministic",
            scope=cache_policies.scope_of(sharing, row.tenant_id, row.id),
            ttl_seconds=tables.cache_settings.ttl_seconds or defaults.ttl_seconds or cache_policies.TTL_SECONDS,
            charges=tables.cache_settings.charges,
            purged=max(tables.purges.all, *(tables.purges.tenants.get(tenant, 0) for tenant in purged), 0),
            purged_models=tables.purges.models,
        )

    def key_acting_for(self, address: Address | None, now: float) -> Key | None:
        """The key that calls without one are made with, from a network that an IP rule lets act as it."""
        acting = self.acting_for(address)
        return None if acting is None else self._acting_key(acting.key_id, now)

    def acting_for(self, address: Address | None) -> Acting | None:
        """The rule by which calls from an address need no key."""
        if address is None:
            return None
        for acting in self.acting:
            if acting.network.version == address.version and address in acting.network:
                return acting
        return None

    def count_acting(self, address: Address | None) -> None:
        """A call is made without a key."""
        if (acting := self.acting_for(address)) is not None:
            acting.entry.count(self._tally)

    def _acting_key(self, key_id: int, now: float) -> Key | None:
        key = self.key(key_id, now)
        if key is None:
            return None
        if key_id not in self._acting_keys:
            self._acting_keys[key_id] = replace(key, acting=True)
        return self._acting_keys[key_id]

    def model(self, key: Key, asked: str, installed: Installed = NOTHING) -> "Model":
        """What a name means to a key. Raises InvalidModelName."""
        if installed is not self._models_with:
            self._models.clear()
            self._models_with = installed
        identity = (key.models, key.may_use_cloud, asked)
        model = self._models.get(identity)
        if model is None:
            if len(self._models) >= REMEMBERED:
                self._models.clear()
            model = self._models[identity] = self._resolve(key, asked, installed)
        return model

    def still_allows(self, key: Key, model: "Model") -> bool:
        """Whether a key may use a model that a name of a call meant when it was admitted."""
        return model.allowed and _allows(key, model.asked, model.served)

    def _resolve(self, key: Key, asked: str, installed: Installed) -> "Model":
        name = parse_model_name(asked)
        target = self._alias_of(name, installed)
        if target in default_models.WORDS:
            served = self._default(target, key, name, installed)
            if served is None:
                return Model(name, name, False, NO_POLICY, target)
        else:
            served = parse_model_name(target) if target else name
        return Model(name, served, _allows(key, name, served), self._policy(served.canonical), target)

    def _alias_of(self, name: ModelName, installed: Installed) -> str:
        """The model, or word for a default, that an alias has a name stand for; "" if the name means itself."""
        for pattern, target in self._aliases:
            if fnmatchcase(name.canonical, pattern):
                if pattern == name.canonical:
                    return target
                # A pattern is a guess about names; a model that is there under this very name is none.
                if name.canonical in installed.names:
                    return ""
                if target not in default_models.WORDS or default_models.may_stand_for(name.canonical):
                    return target
        return ""

    def _default(self, target: str, key: Key, asked: ModelName, installed: Installed) -> ModelName | None:
        chosen = self._defaults.get(target)
        # The chosen one also if it is not installed now: which model answers must not depend on what is down.
        if chosen is not None and _allows(key, asked, chosen):
            return chosen
        candidates = (parse_model_name(name) for name in installed.able(target))
        return next((candidate for candidate in candidates if _allows(key, asked, candidate)), None)

    def _policy(self, canonical: str) -> Policy:
        for policy in self.tables.policies:
            if fnmatchcase(canonical, policy.pattern):
                return policy
        return NO_POLICY


@dataclass(frozen=True, slots=True)
class Model:
    asked: ModelName
    served: ModelName
    allowed: bool
    policy: Policy
    # What an alias says in place of the name: a model, @chat or @embedding; "" where the name means itself.
    stands_for: str = ""


def _allows(key: Key, asked: ModelName, served: ModelName) -> bool:
    """By either of its names; a cloud model only with the right to it."""
    named = key.may_use(asked.canonical) or (served is not asked and key.may_use(served.canonical))
    return named and (key.may_use_cloud or not served.cloud)


def _model_name(name: str) -> ModelName | None:
    try:
        return parse_model_name(name) if name else None
    except InvalidModelName:
        return None  # the form refuses it; raw SQL may not have


def ordered_policies(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    """Exact names first, then the longest patterns: the first that fits counts."""
    named = [replace(policy, pattern=canonical_pattern(policy.pattern)) for policy in policies]
    return tuple(sorted(named, key=lambda policy: _precision(policy.pattern)))


def _precision(pattern: str) -> tuple[bool, int, str]:
    return any(char in pattern for char in "*?["), -len(pattern), pattern


def _by_precision(aliases: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    usable = []
    for pattern, target in aliases:
        if target in default_models.WORDS or _model_name(target) is not None:
            usable.append((canonical_pattern(pattern), target))
    return sorted(usable, key=lambda alias: _precision(alias[0]))


def current_rules(rules: Iterable[IPRuleRow], now: float) -> list[IPRuleRow]:
    """Those that have not expired."""
    return [rule for rule in rules if rule.expires_at is None or rule.expires_at > now]


def rules_for_all(rules: Iterable[IPRuleRow], tally: list[Entry] | None = None) -> IPRules:
    return IPRules(((rule.network, rule.action, rule.id) for rule in rules if rule.is_for_all), tally)


def _grouped(rules: Iterable[tuple[int | None, IPRuleRow]], tally: list[Entry]) -> dict[int, IPRules | RulesOfBoth]:
    groups: dict[int, tuple[list[IPRuleRow], list[IPRuleRow]]] = {}
    for subject, rule in rules:
        if subject is not None:
            groups.setdefault(subject, ([], []))[rule.by_owners].append(rule)
    found: dict[int, IPRules | RulesOfBoth] = {}
    for subject, group in groups.items():
        by = [IPRules(((rule.network, rule.action, rule.id) for rule in rows), tally) for rows in group if rows]
        found[subject] = by[0] if len(by) == 1 else RulesOfBoth(*by)
    return found


def _acting(rules: Iterable[IPRuleRow]) -> list[Acting]:
    acting = []
    for rule in rules:
        if rule.acts_as_id is not None:
            network = normalised(rule.network)
            entry = Entry(network, allows=True, rule_id=rule.id)
            acting.append(Acting(network, rule.acts_as_id, rule.expires_at, entry))
    return sorted(acting, key=lambda entry: -entry.network.prefixlen)
