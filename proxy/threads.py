"""A thread of our own for work that may block."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


class WorkThread:
    """Runs functions one after the other. A daemon: a hung database must not keep the process from ending, as the
    threads of concurrent.futures would."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, function: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        """The future of the result, in the loop of the caller."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = function(*args)
            except BaseException as exc:
                self._tell(loop, future, None, exc)
            else:
                self._tell(loop, future, result, None)

        self._jobs.put(job)
        return future

    def stop(self, finish: Callable[[], None] | None = None) -> None:
        """Ends the thread after what it was given; `finish` runs in it last."""
        if finish is not None:
            self._jobs.put(finish)
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    @staticmethod
    def _tell(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]", result: Any, exc: Any) -> None:
        def tell() -> None:
            if future.cancelled():
                return
            if exc is not None:
                future.set_exception(exc)
            else:
                future.set_result(result)

        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:
            pass  # the loop has closed: nobody waits
