"""Loaded runners, their slots, and the one loop that loads."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from proxy.fake_ollama.calls import CallLog
from proxy.fake_ollama.clock import FOREVER
from proxy.fake_ollama.errors import BUSY, LOAD_FAILED, ApiError
from proxy.fake_ollama.faults import Fault, Gate
from proxy.fake_ollama.library import Model

GIB = 1 << 30
# f16 keys and values of a 3B model, and what a runner takes besides weights and cache.
CACHE_BYTES_PER_TOKEN = 114_688
RUNNER_BYTES = 849_645_915
FOREVER_IN_DAYS = 106_751
ONE_SLOT_FAMILIES = ("mllama", "qwen3vl", "qwen35", "qwen3next", "lfm2", "nemotron_h")


@dataclass(frozen=True)
class LoadOptions:
    """What a runner is started with. None is automatic."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int | None = None
    draft_num_predict: int | None = None
    shift: bool = True


AUTOMATIC = LoadOptions()


class Runner:
    """A loaded model: so many slots, given out in order of arrival."""

    def __init__(self, log: CallLog, model: Model, options: LoadOptions, context: int, slots: int) -> None:
        self.log = log
        self.model = model
        self.options = options
        self.context = context
        self.slots = slots
        self.free = slots
        self.references = 0
        self.size = model.size + RUNNER_BYTES + CACHE_BYTES_PER_TOKEN * context * slots
        self.size_vram = self.size
        self.keep_alive = 0.0
        self.expires_at: float | None = None
        self.expire_when_idle = False
        self.timer: asyncio.TimerHandle | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self._line: deque[asyncio.Future[None]] = deque()

    async def take_slot(self) -> None:
        if self.free:
            self.free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        self.log.changed()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give_slot()
            raise

    def give_slot(self) -> None:
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.free += 1

    @property
    def waiting(self) -> int:
        return sum(not place.done() for place in self._line)

    def expiry(self) -> datetime:
        if self.keep_alive == FOREVER:
            return datetime.now().astimezone() + timedelta(days=FOREVER_IN_DAYS)
        if self.expires_at is None:
            return datetime.now().astimezone() + timedelta(seconds=self.keep_alive)
        return datetime.fromtimestamp(self.expires_at).astimezone()


@dataclass
class Pending:
    """A request in the load queue."""

    model: Model
    options: LoadOptions
    keep_alive: float | None
    fault: Fault
    ready: asyncio.Future[Runner]
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Scheduler:
    def __init__(
        self,
        log: CallLog,
        gate: Gate,
        *,
        slots: int,
        vram: float,
        load_seconds: float,
        max_queue: int,
        keep_alive: float,
    ) -> None:
        self.log = log
        self.gate = gate
        self.slots = slots
        self.vram = vram
        self.load_seconds = load_seconds
        self.keep_alive = keep_alive
        self.runners: dict[str, Runner] = {}
        self.loading: Model | None = None
        self._pending: asyncio.Queue[Pending] = asyncio.Queue(max(1, max_queue))
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop().create_task(self._serve())

    async def stop(self) -> None:
        self.unload_all()
        if self._loop:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    @property
    def queued(self) -> int:
        return self._pending.qsize()

    # What a call does: acquire, use, release.

    async def acquire(self, model: Model, options: LoadOptions, keep_alive: float | None, fault: Fault) -> Runner:
        """A runner for the model, loaded and referenced; the slot is asked for separately."""
        runner = self.runners.get(model.weights)
        if runner is None or self._needs_reload(runner, model, options):
            return await self._queue(Pending(model, options, keep_alive, fault, self._future()))
        return self._refer(runner, keep_alive)

    def release(self, runner: Runner) -> None:
        runner.references -= 1
        if runner.references:
            return
        runner.idle.set()
        if runner.expire_when_idle or runner.keep_alive <= 0:
            self._unload(runner)
        elif runner.keep_alive != FOREVER:
            self._expire_later(runner)

    def expire(self, model: Model) -> None:
        """Unload when idle."""
        runner = self.runners.get(model.weights)
        if runner is None:
            return
        if runner.references:
            runner.expire_when_idle = True
        else:
            self._unload(runner)

    def unload_all(self) -> None:
        for runner in list(self.runners.values()):
            self._unload(runner)

    def listed(self) -> list[Runner]:
        return sorted(self.runners.values(), key=lambda runner: runner.expiry(), reverse=True)

    def context_for(self, model: Model, options: LoadOptions) -> int:
        default = 4096 if self.vram < 23 else 32_768 if self.vram < 47 else 262_144
        wanted = default if options.num_ctx is None else max(4, options.num_ctx)
        if model.can("vision"):
            wanted = max(2048, wanted)
        return min(wanted, model.context_length)

    def slots_for(self, model: Model) -> int:
        one = model.can("embedding") or model.family.startswith(ONE_SLOT_FAMILIES)
        return 1 if one else self.slots

    # Inside.

    def _future(self) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().create_future()

    def _refer(self, runner: Runner, keep_alive: float | None) -> Runner:
        runner.references += 1
        runner.idle.clear()
        if keep_alive is not None:
            runner.keep_alive = keep_alive
            runner.expire_when_idle = False
        return runner

    def _needs_reload(self, runner: Runner, model: Model, options: LoadOptions) -> bool:
        old = runner.options
        if runner.options is options or old == options:
            return False
        both_automatic = old.num_ctx is None and options.num_ctx is None
        return (
            (not both_automatic and runner.context != self.context_for(model, options))
            or old.shift != options.shift
            or (options.num_gpu is not None and options.num_gpu >= 0 and options.num_gpu != old.num_gpu)
            or any(
                getattr(old, name) != getattr(options, name)
                for name in ("num_batch", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
            )
        )

    async def _queue(self, pending: Pending) -> Runner:
        try:
            self._pending.put_nowait(pending)
        except asyncio.QueueFull:
            raise ApiError(503, BUSY) from None
        self.log.changed()
        try:
            return await pending.ready
        except asyncio.CancelledError:
            # Its place in the queue stays taken until its turn comes.
            pending.gone.set()
            if pending.ready.done() and not pending.ready.cancelled() and not pending.ready.exception():
                self.release(pending.ready.result())
            raise

    async def _serve(self) -> None:
        while True:
            pending = await self._pending.get()
            if not pending.gone.is_set():
                await self._satisfy(pending)

    async def _satisfy(self, pending: Pending) -> None:
        runner = self.runners.get(pending.model.weights)
        if runner and self._needs_reload(runner, pending.model, pending.options):
            runner.expire_when_idle = True
            await runner.idle.wait()
            self._unload(runner)
            runner = None
            if pending.gone.is_set():
                return
        try:
            runner = runner or await self._load(pending)
        except ApiError as error:
            if not pending.ready.done():
                pending.ready.set_exception(error)
            return
        if runner and not pending.ready.done():
            pending.ready.set_result(self._refer(runner, pending.keep_alive))

    async def _load(self, pending: Pending) -> Runner | None:
        """The loaded runner, or None if the one who asked for it left: then the next begins from zero."""
        self.loading = pending.model
        self.log.totals.loads[pending.model.name] += 1
        self.log.changed()
        try:
            loaded = await self._load_time(pending)
        finally:
            self.loading = None
        if not loaded:
            self.log.totals.loads_aborted += 1
            self.log.changed()
            return None
        if pending.fault.load_error_500:
            raise ApiError(500, LOAD_FAILED)
        return self._install(pending)

    async def _load_time(self, pending: Pending) -> bool:
        fault = pending.fault
        seconds = self.load_seconds if fault.load_seconds is None else fault.load_seconds
        if fault.hang_load:
            await either(self.gate.wait, pending.gone.wait)
        elif seconds:
            try:
                async with asyncio.timeout(seconds):
                    await pending.gone.wait()
            except TimeoutError:
                pass
        return not pending.gone.is_set()

    def _install(self, pending: Pending) -> Runner:
        model = pending.model
        runner = Runner(
            self.log, model, pending.options, self.context_for(model, pending.options), self.slots_for(model)
        )
        used = sum(other.size_vram for other in self.runners.values())
        runner.size_vram = max(0, min(runner.size, int(self.vram * GIB) - used))
        runner.keep_alive = self.keep_alive
        self.runners[model.weights] = runner
        return runner

    def _expire_later(self, runner: Runner) -> None:
        runner.expires_at = time.time() + runner.keep_alive
        # A timer that is already set looks again when it fires: busy runners would otherwise set one a call.
        loop = asyncio.get_running_loop()
        due = loop.time() + runner.keep_alive
        if runner.timer is None or runner.timer.when() > due:
            self._drop_timer(runner)
            runner.timer = loop.call_later(runner.keep_alive, self._expired, runner)

    def _expired(self, runner: Runner) -> None:
        runner.timer = None
        if runner.references or runner.keep_alive == FOREVER or runner.expires_at is None:
            return
        left = runner.expires_at - time.time()
        if left <= 0.001:
            self._unload(runner)
        else:
            runner.timer = asyncio.get_running_loop().call_later(left, self._expired, runner)

    def _unload(self, runner: Runner) -> None:
        self._drop_timer(runner)
        if self.runners.get(runner.model.weights) is runner:
            del self.runners[runner.model.weights]
            self.log.totals.unloads += 1
            self.log.changed()

    def _drop_timer(self, runner: Runner) -> None:
        if runner.timer:
            runner.timer.cancel()
            runner.timer = None


async def either(*waits: Callable[[], Any]) -> None:
    tasks = [asyncio.ensure_future(wait()) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
