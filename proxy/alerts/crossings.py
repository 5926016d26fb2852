"""Finds what has been used to 80 or 100 %, and writes it down once. Asks the roll-ups; runs in a thread of its own."""

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db import transaction

from proxy.alerts import messages
from proxy.limits import recorded
from proxy.limits.compiling import compiled
from proxy.limits.recorded import Used
from proxy.limits.rules import calendar_window
from proxy.models import Delivery, LimitAlert, Webhook
from tenants.models import ApiKey, Limit, Membership, Role, User

THRESHOLDS = (80, 100)
# So long after a window has turned, what was used of the one before is still looked at: calls are stored late.
AFTERWARDS_SECONDS = 60.0
# Alerts that this process knows to be written down; forgotten now and then, and then asked of the database.
REMEMBERED = 10_000

Identity = tuple[int, str, float, int, int]  # limit, counted for, start of the window, amount, threshold


class Crossings:
    def __init__(self, using: str = "default") -> None:
        self._using = using
        self._known: set[Identity] = set()

    def look(self, full: Mapping[str, int] | None = None, now: float | None = None) -> int:
        """Writes down what has been crossed and was not yet; returns how many. Raises DatabaseError.

        `full`: counters that calls have been refused by, with the id of their limit; then only those limits are looked
        at. A limit that refuses counts as used to 100 % from 80 % on: what is left is less than one call asks for.
        """
        limits = Limit.objects.using(self._using).filter(alert=True).select_related("tenant", "user", "key")
        if full is not None:
            limits = limits.filter(pk__in=set(full.values()))
        rows = {row.pk: row for row in limits}
        if not rows:
            return 0
        now = time.time() if now is None else now
        found = 0
        for moment in self._moments(rows.values(), now):
            asked = [compiled(row) for row in rows.values()]
            for used in recorded.by_subject(asked, settings.TIME_ZONE, moment, self._using):
                found += self._judge(rows[used.limit[4].id], used, moment, used.window.key in (full or ()))
        return found

    def _moments(self, rows: Iterable[Limit], now: float) -> list[float]:
        """Now; and the end of a window that ended just now."""
        starts = {calendar_window(row.window, settings.TIME_ZONE, int(now // 60))[0] for row in rows}
        return [now, *(start - 1 for start in starts if now - start < AFTERWARDS_SECONDS)]

    def _judge(self, row: Limit, used: Used, moment: float, refuses: bool) -> int:
        rule = used.limit[4].in_force(moment)
        if not rule.amount:
            return 0
        percent = 100 * used.amount // rule.amount
        start, _ = calendar_window(rule.window, settings.TIME_ZONE, int(moment // 60))
        found = 0
        for threshold in THRESHOLDS:
            if percent < (THRESHOLDS[0] if refuses else threshold):
                continue
            identity = (row.pk, used.counted_for, start, rule.amount, threshold)
            if identity not in self._known:
                found += self._write_down(row, used, rule.amount, threshold, moment)
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known.add(identity)
        return found

    def _write_down(self, row: Limit, used: Used, amount: int, threshold: int, moment: float) -> bool:
        """Whether it is new. One row, whoever comes first; what is to be sent is written with it or not at all."""
        key = _key_of(row, used, self._using)
        start, end = calendar_window(row.window, settings.TIME_ZONE, int(moment // 60))
        window = (datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC))
        with transaction.atomic(using=self._using):
            alert, new = LimitAlert.objects.using(self._using).get_or_create(
                limit=row,
                counted_for=used.counted_for,
                window_start=window[0],
                amount=amount,
                threshold=threshold,
                defaults={
                    "tenant_id": _tenant_of(row, key),
                    "window_end": window[1],
                    "body": messages.alert(row, key, threshold, amount, used.amount, window),
                },
            )
            if new:
                Delivery.objects.using(self._using).bulk_create(_deliveries(alert, row, key, self._using))
        return new


def _key_of(row: Limit, used: Used, using: str) -> ApiKey | None:
    """Whose calls it is about, where it is about one key."""
    keys = ApiKey.objects.using(using).select_related("tenant", "user")
    if row.scope == Limit.Scope.KEY:
        return keys.filter(pk=row.key_id or 0).first()
    return keys.filter(prefix=used.counted_for).first() if row.scope == Limit.Scope.DEFAULT else None


def _tenant_of(row: Limit, key: ApiKey | None) -> int | None:
    """None: a user in all tenants."""
    return key.tenant_id if key is not None else row.tenant_id or row.managed_by_id


def _deliveries(alert: LimitAlert, row: Limit, key: ApiKey | None, using: str) -> list[Delivery]:
    hooks = [Delivery(alert=alert, webhook=hook) for hook in Webhook.objects.using(using).about(alert.tenant_id)]
    if not settings.EMAIL_IS_SENT:
        return hooks
    addresses = dict.fromkeys(user.email.lower() for user in _people(alert, row, key, using) if user.email)
    return hooks + [Delivery(alert=alert, email=address) for address in addresses]


def _people(alert: LimitAlert, row: Limit, key: ApiKey | None, using: str) -> list[Any]:
    """Whose limit it is, and the owners of the tenant."""
    owners = Membership.objects.using(using).filter(tenant=alert.tenant_id or 0, role=Role.OWNER).values("user")
    whose = [pk for pk in (row.user_id, key.user_id if key is not None else None) if pk is not None]
    users = User.objects.using(using).filter(is_active=True)
    return list(users.filter(pk__in=whose)) + list(users.filter(pk__in=owners))
