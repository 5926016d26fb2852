"""What lives as long as the process: the rules, the fleet, the limits, the ledger, the calls in flight."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from proxy.access_log import AccessLog
from proxy.admission import Admission
from proxy.alerts.watch import AlertsWatch
from proxy.cache.policy import Settings
from proxy.cache.responses import ResponseCache
from proxy.call import Call, Ids
from proxy.client import Headers
from proxy.clock import SteadyClock
from proxy.configuration import Configuration
from proxy.cors import Origins
from proxy.credential_failures import CredentialFailures
from proxy.errors import Forbidden, Interruption, Refusal, TooManyRequests, Unauthorized, Unavailable
from proxy.fleet import Fleet
from proxy.fleet.reports import BackendReports
from proxy.headers import instance_mark
from proxy.host_names import HostNames
from proxy.ledger import Ledger
from proxy.ledger.rows import Row
from proxy.limits import Limits, Rule
from proxy.limits.engine import Counted
from proxy.live.board import Board
from proxy.metrics import Metrics
from proxy.routes import Right
from proxy.rules_watch import RulesWatch
from proxy.snapshot import Snapshot, Tables
from proxy.texts import Listening
from proxy.threads import WorkThread
from proxy.tracing import Tracing, tracing_of
from proxy.worker_reports import Status, WorkerReports

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long the first call waits for the first reading of the rules.
START_PATIENCE = 5.0
# How long a page waits for what the limits have counted.
COUNT_PATIENCE = 1.0


class Runtime:
    """Made once per process, without an event loop; started by the server, or by the first call where there is none
    that would (Daphne sends no lifespan events)."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.now = SteadyClock()
        self.ids = Ids()
        self.admission = Admission(
            configuration.auth_header, configuration.key_pepper, configuration.key_pepper_fallbacks
        )
        self.instance = instance_mark(configuration.key_pepper)
        site = [configuration.site_url] if configuration.site_url else []
        self.origins = Origins([*site, *configuration.cors_origins])
        self.host_names = HostNames(configuration.host_names, configuration.site_url)
        self.credential_failures = CredentialFailures(configuration.failed_credentials_per_minute)
        self.limits = Limits(
            configuration.time_zone,
            self.now,
            configuration.redis_url,
            lease_seconds=configuration.limit_lease_seconds,
            patience=configuration.redis_patience_seconds,
        )
        self.tracing: Tracing | None = None
        self.metrics = Metrics(configuration)
        self.access_log = AccessLog() if configuration.access_log else None
        self.cache = ResponseCache(configuration)
        # What holds where nobody chose otherwise in the admin.
        self.cache_defaults = Settings(configuration.cache_policy, configuration.cache_ttl_seconds)
        self.calls: set[Call] = set()
        self.board = Board(self)
        self.draining = False
        self.snapshot: Snapshot | None = None
        self.ledger: Ledger
        self.fleet: Fleet
        self.worker_reports = WorkerReports()
        self.alerts = AlertsWatch()
        self._rules: RulesWatch
        self._backend_reports: BackendReports
        self._starting: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._closed = False
        self._ready: asyncio.Event
        self._nothing_runs: asyncio.Event
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def is_started(self) -> bool:
        return self._starting is not None

    async def start(self) -> None:
        """Idempotent. Returns when the rules are known, or after a while without them: then calls get 503."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._nothing_runs = asyncio.Event()
        self.ledger = Ledger(self.configuration)
        self.ledger.start()
        self.limits.start()
        self.cache.start()
        self.tracing = tracing_of(self.configuration)
        self.fleet = Fleet(self.configuration, self.instance)
        self._rules = RulesWatch(lambda tables: _call_soon(loop, self._apply, tables), self.configuration.time_zone)
        self._rules.start()
        self._sweeper = asyncio.create_task(self._sweep_for_ever(), name="sweeper")
        self.board.start()
        self.worker_reports.start(self.ledger.run, self._status)
        self.alerts.start()
        self._backend_reports = BackendReports(self.fleet.states)
        await self.metrics.start()
        try:
            async with asyncio.timeout(START_PATIENCE):
                await self._ready.wait()
        except TimeoutError:
            logger.warning("The rules could not be read yet; calls are refused until they are")

    def check_open(self) -> None:
        """Raises Unavailable while the gateway ends."""
        if self.draining:
            raise Unavailable("draining", "The gateway is shutting down. Try again.", retry_after=2)

    def rules(self) -> Snapshot:
        """The rules in force. Raises Unavailable when there are none, or none that are young enough (S1)."""
        snapshot = self.snapshot
        if snapshot is None:
            raise Unavailable("state_unavailable", "The gateway is starting and has no rules yet.", retry_after=2)
        grace = self.configuration.db_grace_seconds
        if grace and time.monotonic() - self._rules.last_contact > grace + 1:
            raise Unavailable("state_unavailable", "The gateway has lost its database for too long.", retry_after=10)
        return snapshot

    def _apply(self, tables: Tables) -> None:
        try:
            self._use(Snapshot(tables, self.now(), self.cache_defaults))
            self.fleet.apply(tables.backends)
        except Exception:
            # The next change of the tables may be one that can be used (L5).
            logger.exception("The rules could not be put in force; the old ones stay")
        else:
            self._ready.set()

    def _use(self, snapshot: Snapshot) -> None:
        if self.snapshot is not None:
            self.worker_reports.hit(self.snapshot.take_hits())
        self.snapshot = snapshot
        self.limits.know(snapshot.tables.recorded)
        self.cache.use_purges(snapshot.tables.purges)
        for call in list(self.calls):
            if not self.may_go_on(call):
                call.interrupt(Interruption.WITHDRAWN)
            elif (by := snapshot.tables.cancelled.get(call.id)) is not None:
                self.board.cancel(call.id, by)

    @property
    def rules_age(self) -> float:
        """Seconds since the database was heard of."""
        return max(0.0, time.monotonic() - self._rules.last_contact)

    def look_at_rules(self) -> None:
        """Now, rather than within the quarter of a second that it takes by itself."""
        self._rules.look_now()

    def may_go_on(self, call: Call) -> bool:
        """Whether the rules, as they are now, would still let a call in that they let in before."""
        snapshot = self.snapshot
        assert snapshot is not None
        assert call.key is not None
        now = self.now()
        # The rule that let it in without a key may have gone, or lead to another key.
        key = snapshot.key_acting_for(call.address, now) if call.key.acting else snapshot.key(call.key.id, now)
        if key is None or key.id != call.key.id:
            return False
        if call.path_key is not None and not key.may_be_in_path:
            return False
        if not all(rules.allow(call.address) for rules in (snapshot.ip_all, key.tenant_ip, key.key_ip)):
            return False
        if call.route is not None and call.route.right is Right.MANAGE:
            return key.may_manage and all(key.may_use(name.canonical) for name in call.manages)
        return call.model is None or snapshot.still_allows(key, call.model)

    def _status(self) -> Status:
        if self.snapshot is None:
            return Status({}, len(self.calls), self.fleet.line.waiting)
        self.worker_reports.used_cache(self.cache.take_use())
        hits = self.snapshot.take_hits()
        return Status(
            self.snapshot.tables.revisions, len(self.calls), self.fleet.line.waiting, hits, self.cache.state()
        )

    def counted(self, rules: Sequence[Rule], address: str) -> Counted | None:
        """What is used and held of limits, asked from another thread: the engine is the loop's. None where this
        process does not count, or is too busy to say."""
        return self.in_loop(lambda: self.limits.count(rules, address), COUNT_PATIENCE)

    def in_loop(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T | None:
        """What something in the loop of the calls gives, for another thread; None where no loop runs, or it is too
        busy to say in time."""
        if self._starting is None or not self._starting.done() or self._closed or not self._loop.is_running():
            return None
        asked = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return asked.result(seconds)
        except TimeoutError:
            asked.cancel()
            return None

    # The calls in flight.

    def began(self, call: Call) -> None:
        self.calls.add(call)

    def ended(self, call: Call) -> None:
        self.calls.discard(call)
        if self.draining and not self.calls:
            self._nothing_runs.set()

    def keep_text(self, call: Call, listening: Listening) -> None:
        """Of a call that has ended. The switch may have been put off meanwhile."""
        assert call.key is not None
        key = self.snapshot.key(call.key.id, self.now()) if self.snapshot is not None else None
        if key is not None and key.keeps_texts:
            self.ledger.keep_text(listening.text(call))

    def count_refusal(self, call: Call, headers: Headers, refusal: Refusal) -> None:
        """For the pages. After the answer, whose time must not tell a known key from an unknown one (A3)."""
        code, prefix = refusal.code, call.key.prefix if call.key is not None else ""
        if isinstance(refusal, TooManyRequests) and refusal.ran_out is not None:
            self.alerts.ran_out(*refusal.ran_out)
        if isinstance(refusal, Unauthorized | Forbidden) and code != "ip_denied" and self.snapshot is not None:
            code, prefix = self._explained(self.snapshot, call, headers, refusal)
        self.worker_reports.refused(call.started_epoch, code, prefix)

    def _explained(self, snapshot: Snapshot, call: Call, headers: Headers, refusal: Refusal) -> tuple[str, str]:
        """(true cause, prefix of the key on whose page it is told)"""
        code, now = refusal.code, call.started_epoch
        cause, prefix = self.admission.explain(snapshot, headers, now, call.path_key)
        if prefix or (call.key is None and isinstance(refusal, Unauthorized)):
            return cause if code == "invalid_key" else code, prefix
        # The key was not sent: the call is of a network that needs none, or of the playground.
        key = call.key or snapshot.key_acting_for(call.address, now)
        row = snapshot.tables.keys.get(key.id) if key is not None else None
        if code == "invalid_key" and row is not None:
            code = snapshot.why_unusable(row, now) or "key_ip_denied"
        return code, key.prefix if key is not None else ""

    def recorded(self, call: Call, row: Row) -> None:
        """A call has ended, with its completed record."""
        self.metrics.ended(call, row)
        if self.access_log is not None:
            self.access_log.ended(call, row)
        if self.tracing is not None:
            self.tracing.recorded(call, row)

    def answered(self, call: Call, status: int, code: str = "") -> None:
        """A request that has no record was answered, or refused with a code."""
        self.metrics.answered(call, status, code)
        if self.access_log is not None:
            self.access_log.answered(call, status, code)
        if self.tracing is not None:
            self.tracing.answered(call, status, code)

    def metrics_page(self) -> bytes:
        """What Prometheus is told, with all calls that have ended. Blocks: for a thread."""
        self.in_loop(self._count_ended, COUNT_PATIENCE)
        return self.metrics.page()

    async def _count_ended(self) -> None:
        self.metrics.count()

    async def _sweep_for_ever(self) -> None:
        """Once a second: deadlines, notes of progress, expired keys and rules. One timer instead of one per call."""
        while True:
            await asyncio.sleep(1.0)
            try:
                self._sweep()
            except Exception:
                # Nobody else judges deadlines (L5).
                logger.exception("The sweeper failed")

    def _sweep(self) -> None:
        moment, epoch, snapshot = time.monotonic(), self.now(), self.snapshot
        running: list[Call] = []
        for call in list(self.calls):
            # As the rules are now: the end of a key may have been brought forward since the call began.
            if snapshot is not None and call.key is not None and snapshot.key(call.key.id, epoch) is None:
                call.interrupt(Interruption.WITHDRAWN)
            elif 0 < call.deadline < moment:
                call.interrupt(call.deadline_reason)
            elif 0 < call.total_deadline < moment:
                call.interrupt(Interruption.TOTAL)
            elif call.dispatched_at:
                running.append(call)
        self.ledger.progress(running)
        if snapshot is not None and snapshot.valid_until is not None and snapshot.valid_until <= epoch:
            self._use(snapshot.refreshed(epoch))
        self.cache.sweep(moment)
        self.fleet.sweep()
        self.metrics.tick(self)
        self.board.tick()

    # gateway_site.server.Drainable

    def listening(self, places: list[tuple[str, int]]) -> None:
        self.worker_reports.listening(places)

    def begin_drain(self) -> None:
        self.draining = True

    async def drained(self, seconds: float) -> None:
        """Returns when no call runs, or after a while, having ended the rest with an error in their dialect."""
        try:
            async with asyncio.timeout(seconds):
                await self._until_nothing_runs()
        except TimeoutError:
            logger.warning("%d calls are cut: they outlasted the drain of %.0f s", len(self.calls), seconds)
            for call in list(self.calls):
                call.interrupt(Interruption.DRAIN)
            try:
                async with asyncio.timeout(5):
                    await self._until_nothing_runs()
            except TimeoutError:
                logger.warning("%d calls did not end", len(self.calls))

    async def _until_nothing_runs(self) -> None:
        # More than once: a call whose body was still on its way when the drain began starts after the others ended.
        while self.calls:
            self._nothing_runs.clear()
            await self._nothing_runs.wait()

    async def close(self) -> None:
        """Stores what is left and lets everything go. Bounded: what the database does not take stays in the spool."""
        if self._starting is None or self._closed:
            return
        self._closed = True
        self._rules.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._backend_reports.close()
        await self.board.close()
        self.fleet.close()
        if self.snapshot is not None:
            self.worker_reports.hit(self.snapshot.take_hits())
        self.worker_reports.used_cache(self.cache.take_use())
        await self.worker_reports.close()
        await self.alerts.stop()
        await self.limits.close()
        await self.cache.close()
        await self.metrics.close()
        if self.access_log is not None:
            await self.access_log.close()
        if self.tracing is not None:
            await asyncio.wait({WorkThread("traces").run(self.tracing.close)}, timeout=3)
        await self.ledger.close(5)

    def close_at_exit(self) -> None:
        """For servers that tell nobody of their end. What is not stored now is adopted from the spool later (U1)."""
        if self._starting is None or self._closed or self._loop.is_closed():
            return
        try:
            if self._loop.is_running():  # in another thread: runserver's
                asyncio.run_coroutine_threadsafe(self.close(), self._loop).result(8)
            else:
                self._loop.run_until_complete(self.close())
        except Exception:
            logger.exception("Could not close at exit; the next process takes over the spool")

    @property
    def is_ready(self) -> bool:
        if self.draining or self.snapshot is None or not self.ledger.is_writable:
            return False
        try:
            self.rules()
        except Unavailable:
            return False
        return True


def _call_soon(loop: asyncio.AbstractEventLoop, function: object, *args: object) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)  # type: ignore[arg-type]
    except RuntimeError:
        pass  # the loop has closed
