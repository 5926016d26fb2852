"""A certificate that is renewed while it serves: connections made from then on get the new one."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from .tls import BadCertificate, context_of, warning_about

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int] | None, ...]


class Files:
    """The files of a certificate and its key; made before they are read."""

    def __init__(self, certificate: str, key: str) -> None:
        self.paths = certificate, key
        self._seen = self._stamp()

    def renewed(self) -> ssl.SSLContext | None:
        """One that shows what is there, if that is another pair. Raises BadCertificate, once for what is there."""
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        context = context_of(*self.paths)
        if warning := warning_about(self.paths[0]):
            logger.warning("%s", warning)
        return context

    def _stamp(self) -> Stamp:
        return tuple(map(_stamp_of, self.paths))


async def follow(files: Files, context: ssl.SSLContext, seconds: float) -> None:
    """Looks at the files each so many seconds, for ever. While only one of the two is new, the old pair serves on.

    `context`: the one that the server was started with. It hands each handshake to the newest: loaded into itself, a
    pair of another kind (RSA, ECDSA) would stand beside the old one, and one that does not fit would end all.
    """
    while True:
        await asyncio.sleep(seconds)
        try:
            newest = await asyncio.to_thread(files.renewed)
        except BadCertificate as exc:
            logger.warning("The certificate is not renewed, the one before serves on: %s", exc)
            continue
        if newest is not None:
            _hand_over(context, newest)
            logger.warning("The certificate was renewed; new connections get the new one")


def _hand_over(context: ssl.SSLContext, newest: ssl.SSLContext) -> None:
    def choose(connection: ssl.SSLObject, server_name: str | None, first: ssl.SSLContext) -> None:
        connection.context = newest

    # Called for each handshake, whether the client names a server or not.
    context.sni_callback = choose


def _stamp_of(path: str) -> tuple[int, int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
