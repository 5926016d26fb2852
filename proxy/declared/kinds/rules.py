"""From where, and how much."""

from collections.abc import Hashable, Iterable
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

from proxy.declared import fields
from proxy.declared.document import Mapping, Node, Scalar
from proxy.declared.fields import Field, Wrong
from proxy.declared.kinds.base import Kind, Plain, columns, is_of_what_is_there
from proxy.model_names import canonical_pattern
from tenants import money
from tenants.models import IPRule, Limit


class IPRules(Kind):
    """Those of administrators; what owners of tenants set for their own is theirs."""

    section, noun, model, required = "ip_rules", "IP rule", IPRule, ("cidr", "action")

    def make_fields(self) -> Iterable[Field]:
        yield from columns(IPRule, "cidr", "action")
        yield Field("tenant", "tenant", self.world.tenant, str, None, None)
        yield Field("key", "key", self.world.key, self.world.name_of, None, None)
        yield Field("acts_as", "acts_as", self.world.key, self.world.name_of, None, None)
        yield from columns(IPRule, "note", expires="expires_at")

    def queryset(self) -> Iterable[Any]:
        rules = IPRule.objects.filter(by_owners=False).order_by("pk")
        rules = rules.select_related("tenant", "key__tenant", "acts_as__tenant")
        return (rule for rule in rules if is_of_what_is_there(rule.tenant, rule.key, rule.acts_as))

    def identity(self, row: IPRule) -> Hashable:
        with suppress(ValueError):  # which the check reports
            row.cidr = str(ip_network(row.cidr))
        return (row.cidr, row.action, row.tenant_id, row.key_id, row.acts_as_id)

    def name_of(self, row: IPRule) -> str:
        whom = f" as {self.world.name_of(row.acts_as)}" if row.acts_as else ""
        subject = row.tenant or (row.key and self.world.name_of(row.key))
        return f"{row.action} {row.cidr}{f' for {subject}' if subject else ''}{whom}"


class Limits(Kind):
    """Those of administrators; what owners of tenants set for their own is theirs."""

    section, noun, model, required = "limits", "limit", Limit, ("for", "metric", "amount")

    SUBJECTS = ("tenant", "user", "key")

    def make_fields(self) -> Iterable[Field]:
        # "for" is the scope, and names its subject.
        yield Field("for", "scope", self._scope, str)
        yield from columns(Limit, "metric")
        yield Field("window", "window", self._window, str, Limit.Window.NONE)
        yield Field("amount", "amount", fields.text, str)
        yield from columns(Limit, "model", "mode")
        yield Field("override_amount", "override_amount", fields.text, str, None, None)
        yield from columns(Limit, "override_until", "alert")

    def _scope(self, node: Node) -> dict[str, Any]:
        """Columns: default, address, or {tenant: …}, {user: …}, {key: …}."""
        if isinstance(node, Mapping) and len(node.entries) == 1:
            ((scope, value),) = node.entries.items()
            if scope in self.SUBJECTS:
                return {"scope": scope, scope: getattr(self.world, scope)(value)}
        elif isinstance(node, Scalar) and node.text in ("default", "address"):
            return {"scope": node.text}
        raise Wrong("write default, address, {tenant: NAME}, {user: NAME} or {key: TENANT/NAME}.")

    @staticmethod
    def _window(node: Node) -> tuple[str, int | None]:
        written = fields.text(node)
        if written in ("minute", "hour", "day", "month"):
            return written, None
        if written.isascii() and written.isdigit() and 0 < int(written[:11]) <= 2**31 - 1:
            return Limit.Window.SECONDS, int(written)
        raise Wrong("write a number of seconds, or minute, hour, day or month.")

    def queryset(self) -> Iterable[Any]:
        limits = Limit.objects.filter(managed_by=None).select_related("tenant", "user", "key__tenant").order_by("pk")
        return (limit for limit in limits if is_of_what_is_there(limit.tenant, limit.key))

    def identity(self, row: Limit) -> Hashable:
        subject = (row.scope, row.tenant_id, row.user_id, row.key_id)
        model = canonical_pattern(row.model) if row.model else ""
        return (*subject, row.metric, row.window, row.window_seconds, model)

    def set(self, row: Limit, values: dict[str, Any]) -> None:
        columns = dict(values.get("for", {}))
        if "window" in values:
            columns["window"], columns["window_seconds"] = values["window"]
        for name in ("amount", "override_amount"):
            if name in values:
                columns[name] = None if values[name] is None else _quantity(name, values["metric"], values[name])
        columns.update(
            (name, values[name]) for name in ("metric", "model", "mode", "override_until", "alert") if name in values
        )
        for name, value in columns.items():
            setattr(row, name, value)

    def described(self, row: Limit) -> Plain:
        subject: Any = row.scope
        if row.scope in self.SUBJECTS:
            of = getattr(row, row.scope)
            subject = {row.scope: self.world.name_of(of) if row.scope == "key" else str(of)}
        found = super().described(row)
        found["for"] = subject
        if row.window == Limit.Window.SECONDS:
            found["window"] = row.window_seconds
        for name in ("amount", "override_amount"):
            if (value := getattr(row, name)) is not None:
                found[name] = money.shown(value) if row.metric == Limit.Metric.COST else value
        return found

    def name_of(self, row: Limit) -> str:
        window = f"{row.window_seconds} s" if row.window == Limit.Window.SECONDS else row.window
        subject = self.described(row)["for"]
        if isinstance(subject, dict):
            subject = " ".join(*subject.items())
        parts = (row.metric, "" if row.metric == "concurrent" else f"per {window}", f"for {subject}", row.model)
        return " ".join(part for part in parts if part)


def _quantity(name: str, metric: str, written: str) -> int:
    try:
        return money.to_nano(written[:100]) if metric == Limit.Metric.COST else int(written[:30])
    except ValueError as exc:
        raise Wrong(f"{name}: {exc if metric == Limit.Metric.COST else 'write a whole number.'}") from None
