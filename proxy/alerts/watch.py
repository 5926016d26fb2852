"""The thread of a worker that looks after alerts. Of all workers one has the duty to look at the roll-ups and to send;
each tells what its own calls were refused by. Nothing here is on the path of a call."""

import asyncio
import logging
import os
import secrets
import socket
import threading
import time

from django.db import DatabaseError, InterfaceError, connections
from django.db.models import Min

from proxy import duties
from proxy.alerts import deliveries
from proxy.alerts.crossings import Crossings
from proxy.models import Delivery

logger = logging.getLogger(__name__)

DUTY = "alerts"
POLL_SECONDS = 1.0
RETRY_SECONDS = 2.0
PRUNE_SECONDS = 3600.0
# Looking takes at most a twentieth of the time.
REST = 20
# Messages on their way at a time, of one process; one receiver gets one after the other.
AT_ONCE = 4
# A refusal is known before what was used is stored.
REFUSED_FOR_SECONDS = 15.0
MOST_REFUSED = 1000

Receiver = tuple[str, int | None]  # mailbox, or id of a webhook


class AlertsWatch:
    """`ran_out` is called in the loop of the calls; everything else happens in threads."""

    def __init__(self) -> None:
        self._holder = f"{socket.gethostname()[:60]} {os.getpid()} {secrets.token_hex(4)}"
        self._stop = threading.Event()
        self._crossings = Crossings()
        # counter → (limit, until when it is worth a look)
        self._refused: dict[str, tuple[int, float]] = {}
        self._sending: dict[Receiver, threading.Thread] = {}
        # When each of those for whom something waits was last sent to (monotonic).
        self._served: dict[Receiver, float] = {}
        self._looks_at = self._prunes_at = self._duty_until = 0.0
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self, seconds: float = 1.5) -> None:
        """Lets the round end, and what is being sent be told; what is not told by then is tried again elsewhere."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        # Not join() in a thread: at the exit of a process Python makes no new ones.
        while any(thread.is_alive() for thread in (self._thread, *self._sending.values())):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.01)

    def ran_out(self, limit_id: int, counter: str) -> None:
        """Calls are refused by a limit of which somebody wants to be told."""
        if len(self._refused) < MOST_REFUSED or counter in self._refused:
            self._refused[counter] = limit_id, time.monotonic() + REFUSED_FOR_SECONDS

    def _run(self) -> None:
        while not self._stop.wait(RETRY_SECONDS if self._failing else POLL_SECONDS):
            try:
                self._round()
                self._failing = False
            except (DatabaseError, InterfaceError) as exc:
                if not self._failing:
                    logger.warning("Alerts wait for the database (%s)", type(exc).__name__)
                self._fail()
            except Exception:
                logger.exception("Alerts could not be looked after")
                self._fail()
        self._leave()

    def _fail(self) -> None:
        self._failing = True
        connections.close_all()

    def _round(self) -> None:
        now = time.monotonic()
        if refused := self._refused_lately(now):
            self._crossings.look(refused)
        if not self._has_duty(now):
            return
        if now >= self._looks_at:
            self._crossings.look()
            self._looks_at = now + REST * (time.monotonic() - now)
        self._send_what_is_due()
        if now >= self._prunes_at:
            self._prunes_at = now + PRUNE_SECONDS
            deliveries.prune()

    def _refused_lately(self, now: float) -> dict[str, int]:
        for counter, (_, until) in list(self._refused.items()):
            if until <= now:
                self._refused.pop(counter, None)
        return {counter: limit for counter, (limit, _) in list(self._refused.items())}

    def _has_duty(self, now: float) -> bool:
        if now < self._duty_until:
            return True
        if duties.is_free(DUTY, self._holder) and duties.take(DUTY, self._holder):
            self._duty_until = now + duties.LEASE.total_seconds() / 3
            return True
        return False

    def _send_what_is_due(self) -> None:
        """To each receiver in turn: one that hangs, with hundreds waiting for it, keeps nobody else from theirs."""
        self._sending = {receiver: thread for receiver, thread in self._sending.items() if thread.is_alive()}
        due = Delivery.objects.due()
        receivers = {row[:2]: row[2] for row in due.values_list("email", "webhook").annotate(since=Min("due_at"))}
        self._served = {receiver: self._served.get(receiver, 0.0) for receiver in receivers}
        for receiver in sorted(receivers, key=lambda receiver: (self._served[receiver], receivers[receiver])):
            if len(self._sending) >= AT_ONCE:
                return
            email, webhook = receiver
            delivery = due.filter(email=email, webhook=webhook).order_by("due_at").first()
            if receiver not in self._sending and delivery is not None and deliveries.claim(delivery):
                thread = threading.Thread(target=deliveries.attempt, args=(delivery.pk,), name="delivery", daemon=True)
                self._sending[receiver], self._served[receiver] = thread, time.monotonic()
                thread.start()

    def _leave(self) -> None:
        try:
            duties.let_go(DUTY, self._holder)
        except (DatabaseError, InterfaceError) as exc:
            logger.debug("The duty is left to run out: %s", exc)
        connections.close_all()
