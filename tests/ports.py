"""Ports for servers of the tests."""

import itertools
import os
import socket

# Below those that the kernel gives to outgoing connections, and apart for each process of a run: a port that was free
# a moment ago is not taken by somebody else before its server has started.
_FIRST, _EACH = 12_000, 2_000
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_own = range(_FIRST + _worker * _EACH, _FIRST + (_worker + 1) * _EACH)
# Two runs at once begin at different places.
_candidates = itertools.islice(itertools.cycle(_own), os.getpid() * 37 % _EACH, None)


def free_port() -> int:
    for port in itertools.islice(_candidates, _EACH):
        with socket.socket() as listener:
            # As servers do: a port whose old connections linger is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
