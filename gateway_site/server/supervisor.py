"""The parent of several workers: it holds the port, restarts who dies, and passes on the signal to stop."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType

from .lifeline import end_with
from .listeners import Place, listen_beside
from .options import ServerOptions
from .worker import announce, leave, work

logger = logging.getLogger(__name__)

# A forked child would inherit database connections, threads' locks and random state of the command that started us.
# A child of a process that has only loaded modules inherits those, and starts in a fifth of the time. It has to find
# them where we did, for which some versions of Python look at the environment alone.
FORKS = sys.platform == "linux" and not sys.flags.ignore_environment
processes = multiprocessing.get_context("forkserver") if FORKS else multiprocessing.get_context("spawn")
TEMPLATE = f"{__package__}.template"

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
# A worker that lived so long was well: its next restart is immediate again.
WELL_AFTER = 60.0
# Beyond the drain limit, for a worker to close and exit before it is killed.
KILL_AFTER = 15.0


class Worker:
    """One place among the workers, with the process that fills it at present."""

    def __init__(self, app_import: str, runtime_import: str, options: ServerOptions, places: list[Place]) -> None:
        self.arguments = (app_import, runtime_import, options, places)
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None
        self.ready = False
        self.was_ready = False
        self.started_at = 0.0
        self.pause = FIRST_PAUSE
        self.due = 0.0

    def start(self) -> None:
        self.pipe, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=serve_as_worker, args=(*self.arguments, theirs, os.getpid()))
        self.ready = False
        self.started_at = time.monotonic()
        # Ctrl-C reaches the whole process group, but the parent decides what it means. Ignoring is inherited.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        except (EOFError, OSError):
            logger.exception("A worker could not be forked; the next try is in %.1f s", self.pause)
            self._wait_longer()
        else:
            self.process = process
        finally:
            signal.signal(signal.SIGINT, handler)
            theirs.close()

    def hear(self) -> None:
        """The worker says that it accepts connections, or its end of the pipe was closed."""
        if self.pipe is None:
            return
        try:
            self.pipe.recv()
            self.ready = self.was_ready = True
        except (EOFError, OSError):
            self.pipe.close()
            self.pipe = None

    def bury(self) -> None:
        """Its process has ended: note when the next may start."""
        if self.process is None:
            return
        if time.monotonic() - self.started_at > WELL_AFTER:
            self.pause = FIRST_PAUSE
        logger.error(
            "Worker %s ended with %s; the next starts in %.1f s", self.process.pid, self.process.exitcode, self.pause
        )
        self._wait_longer()
        self.process.close()
        self.process = None
        self.ready = False

    def _wait_longer(self) -> None:
        self.due = time.monotonic() + self.pause
        self.pause = min(self.pause * 2, LONGEST_PAUSE)


class Supervisor:
    def __init__(
        self,
        app_import: str,
        runtime_import: str,
        options: ServerOptions,
        places: list[Place],
        shared: Sequence[str] = (),
    ) -> None:
        if FORKS:
            processes.set_forkserver_preload([TEMPLATE, *shared])
            os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        self.options = options
        self.url = options.url(places[0][2])
        self.workers = [Worker(app_import, runtime_import, options, places) for _ in range(options.workers)]
        self.announced = False
        self.signals = 0

    def run(self) -> int:
        with self._signals_to_pipe() as woken:
            for worker in self.workers:
                worker.start()
            while not self.signals:
                self._wait(woken)
                if not self._look_after_workers():
                    logger.error("No worker could start")
                    return self._stop(woken) or 1
            return self._stop(woken)

    @contextlib.contextmanager
    def _signals_to_pipe(self) -> Iterator[int]:
        """A descriptor that becomes readable with each signal, so that waiting for workers ends early."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        waker = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        try:
            yield read
        finally:
            signal.set_wakeup_fd(waker)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read)
            os.close(write)

    @property
    def serving(self) -> bool:
        """Until one worker has been ready, a failure is one of the installation: trying again would hide it."""
        return any(worker.was_ready for worker in self.workers)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1

    def _wait(self, woken: int, seconds: float = 1.0) -> None:
        now = time.monotonic()
        pauses = [worker.due - now for worker in self.workers if worker.process is None and self.serving]
        sources: list[int | Connection] = [woken]
        for worker in self.workers:
            if worker.process is not None:
                sources.append(worker.process.sentinel)
            if worker.pipe is not None:
                sources.append(worker.pipe)
        for source in wait(sources, max(0.0, min([seconds, *pauses]))):
            if source == woken:
                os.read(woken, 4096)
        for worker in self.workers:
            if worker.pipe is not None and worker.pipe.poll():
                worker.hear()

    def _look_after_workers(self) -> bool:
        """Whether there is any hope: False if all have ended before any was ever ready."""
        for worker in self.workers:
            if worker.process is not None and not worker.process.is_alive():
                worker.bury()
        if self.serving:
            for worker in self.workers:
                if worker.process is None and time.monotonic() >= worker.due:
                    worker.start()
        elif not any(worker.process for worker in self.workers):
            return False
        if not self.announced and all(worker.ready for worker in self.workers):
            announce(self.url)
            self.announced = True
        return True

    def _stop(self, woken: int) -> int:
        """Tell the workers, once more for each further signal, and wait; 0 if all of them ended well."""
        deadline = time.monotonic() + self.options.drain_seconds + KILL_AFTER
        passed_on = -1
        while running := [worker.process for worker in self.workers if worker.process and worker.process.is_alive()]:
            if passed_on != self.signals:
                passed_on = self.signals
                for process in running:
                    process.terminate()
            if time.monotonic() > deadline:
                for process in running:
                    logger.error("Worker %s did not end; killed", process.pid)
                    process.kill()
            wait([woken, *(process.sentinel for process in running)], 1.0)
            if wait([woken], 0):
                os.read(woken, 4096)
        # One that had not come so far as to handle the signal has nothing to drain.
        fine = (0, -signal.SIGTERM)
        return int(any(worker.process is not None and worker.process.exitcode not in fine for worker in self.workers))


def serve_as_worker(
    app_import: str,
    runtime_import: str,
    options: ServerOptions,
    places: list[Place],
    ready: Connection,
    parent: int,
) -> None:
    """Entry of a worker process."""
    if FORKS:
        from .template import PID

        parent = PID
    end_with(parent)

    def say_ready() -> None:
        ready.send(True)
        ready.close()

    try:
        code = work(
            app_import,
            runtime_import,
            options,
            lambda: listen_beside(places, options.backlog),
            say_ready,
            (signal.SIGTERM,),
        )
    except Exception:
        logger.exception("The worker failed")
        code = 3
    leave(code)
