"""What Prometheus is told. Labels are closed sets or bounded (labels.py); nothing is of keys or prompts."""

import asyncio
import logging
import socket
import time
from math import isfinite
from typing import TYPE_CHECKING

import orjson
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import REGISTRY, Metric
from prometheus_client.registry import Collector

from proxy.call import Call
from proxy.configuration import Configuration
from proxy.ledger.rows import Row
from proxy.metrics.families import ANSWERED, REFUSED, text
from proxy.metrics.gauges import counters, gauges, usable_keys
from proxy.metrics.host import host_metrics
from proxy.metrics.labels import Labels
from proxy.metrics.shared import Pages, SharedNumbers, Told, added_pages, lasting
from proxy.metrics.tally import Sum, Tally
from proxy.snapshot import Tables
from proxy.threads import WorkThread

if TYPE_CHECKING:
    from proxy.runtime import Runtime

logger = logging.getLogger(__name__)

# So many calls are counted at once, and all that have ended whenever somebody asks: what is done again and again in a
# row costs a third of what it costs once a call, between two others.
BATCH = 64
# How long the start waits for files that another process has locked.
JOIN_PATIENCE = 1.0
# Between two times that a process tells the numbers of its pages, which take some milliseconds.
TELL_PAGES_SECONDS = 5.0
# … and while nothing else has changed: a disk need not be written to all night.
TELL_IDLE_SECONDS = 30.0

# When each counter was made: twice as many lines, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]


# A call, its record, status, outcome and error as they were when it ended, microseconds where there is no record.
Ended = tuple[Call, Row | None, int, str, str, int]


class Metrics:
    """Of one process. What is told of calls is the loop's; `page` may be asked in any thread."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._counts = configuration.metrics_enabled
        self.labels = Labels()
        self.tally = Tally(self.labels)
        self._ended: list[Ended] = []
        self._gauges: list[list[object]] = []
        self._tables: Tables | None = None
        self._keys: tuple[Tables, int] | None = None
        self._pages: Pages = []
        self._pages_of = -TELL_PAGES_SECONDS
        self._shared: SharedNumbers | None = None
        if configuration.metrics_dir is not None and self._counts:
            self._shared = SharedNumbers(configuration.metrics_dir, socket.gethostname())
        self._thread: WorkThread | None = None
        self._telling: asyncio.Future[None] | None = None
        self._said = b""  # all that was told last but for the pages, and when
        self._said_at = 0.0
        self._failing = False

    # On the path of a call

    def ended(self, call: Call, row: Row) -> None:
        """A call that has a record, completed."""
        if self._counts:
            self._add((call, row, call.status, call.outcome, call.error, 0))

    def answered(self, call: Call, status: int, code: str = "") -> None:
        """A request without a record was answered by ourselves, or refused with a code."""
        if self._counts:
            self._add((call, None, status, REFUSED if code else ANSWERED, code, _age_us(call)))

    def _add(self, ended: Ended) -> None:
        self._ended.append(ended)
        if len(self._ended) >= BATCH:
            self.count()

    def count(self) -> None:
        """Counts the calls that have ended since it was last done."""
        ended, self._ended = self._ended, []
        for call, row, status, outcome, error, duration in ended:
            try:
                if row is not None:
                    self.tally.admitted(call, row, status, outcome, error)
                else:
                    self.tally.answered(call, status, duration, outcome, error)
            except Exception:
                # It is another call by which this is done, and it must not fail for it (L5).
                logger.exception("The call %s could not be counted", call.id)

    # Once a second

    async def start(self) -> None:
        """Joins the other processes; where that takes too long, calls begin without it."""
        if self._shared is not None:
            self._thread = WorkThread("metrics")
            self._telling = self._thread.run(self._join)
            await asyncio.wait({self._telling}, timeout=JOIN_PATIENCE)

    def tick(self, runtime: "Runtime") -> None:
        if not self._counts:
            return
        self.count()
        self._gauges = gauges(runtime)
        self.tally.counters.update(counters(runtime))
        self._tables = runtime.snapshot.tables if runtime.snapshot is not None else None
        if self._thread is not None and (self._telling is None or self._telling.done()):
            self._telling = self._thread.run(self._tell)

    async def close(self) -> None:
        """Tells the last numbers, and leaves them to the others."""
        self.count()
        thread, self._thread = self._thread, None
        if thread is not None:
            last = thread.run(self._leave)
            thread.stop()
            await asyncio.wait({last}, timeout=1)

    def _join(self) -> None:
        assert self._shared is not None
        try:
            self._shared.open()
            self.labels.share(self._shared.labels)
        except OSError as exc:
            logger.warning("Metrics are those of one process only: %s", exc)

    def _tell(self) -> None:
        assert self._shared is not None
        if not self._shared.is_open:
            return
        try:
            said, now = orjson.dumps(self._counted()), time.monotonic()
            if said != self._said or now - self._said_at >= TELL_IDLE_SECONDS:
                self._shared.write(self._told)
                self._said, self._said_at = said, now
            self._shared.fold()
            self._failing = False
        except Exception as exc:
            # The next round tells it all (L5).
            if not self._failing:
                logger.warning("Metrics of this process cannot be written for the others: %r", exc)
            self._failing = True

    def _leave(self) -> None:
        assert self._shared is not None
        try:
            self._pages_of = -TELL_PAGES_SECONDS
            self._shared.write(self._told)
        except OSError as exc:
            logger.warning("The last metrics of this process are lost: %s", exc)
        self._shared.close()
        self.labels.close()

    def _told(self) -> Told:
        now = time.monotonic()
        if now - self._pages_of >= TELL_PAGES_SECONDS:
            self._pages, self._pages_of = _of_django(), now
        return {**self._counted(), "pages": self._pages}

    def _counted(self) -> Told:
        return {**self.tally.told(), "gauges": [*self._gauges, *self._key_count()]}

    def _key_count(self) -> list[list[object]]:
        tables = self._tables
        if tables is None:
            return []
        if self._keys is None or self._keys[0] is not tables:
            self._keys = tables, usable_keys(tables, time.time())
        return [["api_keys", "", self._keys[1]]]

    # When it is asked

    def page(self) -> bytes:
        """The numbers of all processes of this host, as Prometheus reads them. Blocks: for a thread. Of this process
        it says what was counted: who wants to have it all asks `count` before."""
        living, gone = self._tellings()
        total = Sum()
        for told in (*living, *gone):
            total.add(told)
        pages = added_pages([*(told["pages"] for told in living), *(lasting(told["pages"]) for told in gone)])
        configuration = self.configuration
        ours = text(total, [told["gauges"] for told in living], configuration.metrics_namespace, configuration.currency)
        host = host_metrics(configuration.metrics_namespace, configuration.spool_dir.parent)
        return ours.encode() + written([*host, *_families(pages)])

    def _tellings(self) -> tuple[list[Told], list[Told]]:
        self._pages_of = -TELL_PAGES_SECONDS
        if self._shared is None or not self._shared.is_open:
            return [self._told()], []
        try:
            # By its file, as for the others: who is asked next must not find less than this answer says.
            self._shared.write(self._told)
            return self._shared.read()
        except OSError as exc:
            logger.warning("Metrics of this process cannot be written for the others: %s", exc)
        try:
            living, gone = self._shared.read(others_only=True)
        except OSError:
            living, gone = [], []
        return [*living, self._told()], gone


def written(found: list[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Found(found))
    return generate_latest(registry)


class _Found(Collector):
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> list[Metric]:
        return self._found


def _of_django() -> Pages:
    """django_http_*, django_db_*, and what prometheus_client says of the process."""
    return [
        [
            family.name,
            family.documentation,
            family.type,
            [[sample.name, sample.labels, sample.value] for sample in family.samples if isfinite(sample.value)],
        ]
        for family in REGISTRY.collect()
    ]


def _families(pages: Pages) -> list[Metric]:
    families = []
    for name, documentation, kind, samples in pages:
        metric = Metric(name, documentation, kind)
        for sample, labels, value in samples:
            metric.add_sample(sample, labels, value)
        families.append(metric)
    return families


def _age_us(call: Call) -> int:
    return int((time.monotonic() - call.started_at) * 1_000_000)
