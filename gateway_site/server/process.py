"""`run()`: the server from its first socket to its exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .listeners import CannotListen, close, listen, reserve
from .options import ServerOptions
from .supervisor import Supervisor
from .worker import announce, work


def run(app_import: str, runtime_import: str, options: ServerOptions, shared: Sequence[str] = ()) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. `*_import` are `module:attribute`, loaded where they serve.
    `shared`: modules that are loaded once for all workers, before these are forked.

    The first signal drains. A second one, a second or more later, cuts what is in flight, closes in at most
    `FORCED_CLOSE_SECONDS` and still exits 0; a third exits 1 without closing anything.
    """
    try:
        if options.workers > 1:
            return _serve_by_workers(app_import, runtime_import, options, shared)
        sockets = listen(options)
    except CannotListen as exc:
        print(exc, file=sys.stderr)
        return 1
    url = options.url(sockets[0].getsockname()[1])
    return work(app_import, runtime_import, options, lambda: sockets, lambda: announce(url))


def _serve_by_workers(app_import: str, runtime_import: str, options: ServerOptions, shared: Sequence[str]) -> int:
    held, places = reserve(options)
    try:
        return Supervisor(app_import, runtime_import, options, places, shared).run()
    finally:
        close(held)
