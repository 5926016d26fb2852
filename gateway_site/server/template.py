"""The process that workers are forked from (Linux): it has loaded what they share, and does nothing else.

multiprocessing calls it the fork server, and imports this module in it before anything else. What follows happens
there; a worker finds the module imported.
"""

import os
import signal
from types import FrameType

from .lifeline import end_with

PID = os.getpid()


def _only_workers_end(number: int, frame: FrameType | None) -> None:
    """A signal to the whole group of processes is for the workers, which take the time of their drain; they would end
    with this process. A worker that was forked a moment ago, and has nothing to drain, ends at once."""
    if os.getpid() != PID:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


end_with(os.getppid())
signal.signal(signal.SIGTERM, _only_workers_end)
