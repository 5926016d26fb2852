"""A certificate that is renewed while it serves: connections made from then on get the new one."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from .tls import BadCertificate, check

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int] | None, ...]


class Files:
    """The files of a certificate and its key."""

    def __init__(self, certificate: str, key: str) -> None:
        self.paths = certificate, key
        self._seen: Stamp = self._stamp()

    def changed(self) -> bool:
        """Whether there is another pair, and a good one. Raises BadCertificate, once for what is there."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        if warning := check(*self.paths):
            logger.warning("%s", warning)
        return True

    def forget(self) -> None:
        """Whatever is there counts as changed."""
        self._seen = ()

    def _stamp(self) -> Stamp:
        return tuple(map(_stamp_of, self.paths))


async def follow(files: Files, context: ssl.SSLContext, seconds: float) -> None:
    """Looks at the files each so many seconds, for ever. While only one of the two is new, the old pair serves on."""
    while True:
        await asyncio.sleep(seconds)
        try:
            if await asyncio.to_thread(files.changed):
                context.load_cert_chain(*files.paths)  # in the loop: no handshake begins meanwhile
                logger.warning("The certificate was renewed; new connections get the new one")
        except BadCertificate as exc:
            logger.warning("The certificate is not renewed, the one before serves on: %s", exc)
        except (ssl.SSLError, OSError) as exc:
            # They were written to after they were checked.
            logger.warning("The certificate could not be renewed; the next look tries again (%s)", exc)
            files.forget()


def _stamp_of(path: str) -> tuple[int, int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
