"""A channel layer for the processes of one machine: each listens on a Unix socket in a directory they share.

What an installation without Redis has, so that several workers need nothing else to hear of each other, and commands
reach a running gateway.
"""

import asyncio
import logging
import os
import re
import stat
import tempfile
import time
from collections import deque
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from channels.layers import BaseChannelLayer

logger = logging.getLogger(__name__)

# A message is one connection: four bytes of length, and JSON.
LENGTH_BYTES = 4
MAX_BYTES = 4 << 20
# Seconds for a message to be taken or to come in; a process that hangs must not hold up the others.
PATIENCE = 0.5
# Messages kept for a reader that does not read; the oldest give way.
MAX_UNREAD = 100
# What the kernel takes for the path of a socket, less the name in it.
LONGEST_DIRECTORY = 70
# A socket that nobody listens on goes after so many seconds: one that is just being made looks the same.
STALE_SECONDS = 10.0

Message = dict[str, Any]

_ADDRESS = re.compile(r"[0-9]+-[0-9a-f]+")


class LocalChannelLayer(BaseChannelLayer):  # type: ignore[misc]  # Channels has no types
    """For one event loop in a process that receives; sending works in any."""

    extensions = ["groups", "flush"]

    def __init__(self, directory: str | Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.directory = short(Path(directory))
        self._server: asyncio.Server | None = None
        self._address = ""  # the name of this process's socket
        self._made = 0
        self._unread: dict[str, deque[Message]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._groups: dict[str, set[str]] = {}

    async def new_channel(self, prefix: str = "specific") -> str:
        if self._server is None:
            await self._listen()
        self._made += 1
        channel = f"{prefix}.{self._made}!{self._address}"
        self._unread[channel] = deque(maxlen=MAX_UNREAD)
        self._news[channel] = asyncio.Event()
        return channel

    async def receive(self, channel: str) -> Message:
        unread, news = self._unread[channel], self._news[channel]
        while not unread:
            news.clear()
            await news.wait()
        return unread.popleft()

    async def group_add(self, group: str, channel: str) -> None:
        self._groups.setdefault(group, set()).add(channel)

    async def group_discard(self, group: str, channel: str) -> None:
        self._groups.get(group, set()).discard(channel)

    async def send(self, channel: str, message: Message) -> None:
        """Raises OSError when the process of a channel does not take it."""
        address = channel.rpartition("!")[2]
        await self._say(address, {"channel": channel, "message": message})

    async def group_send(self, group: str, message: Message) -> None:
        """To all that are there; who does not take it at once does not get it."""
        addresses = [path.name for path in self._sockets()]
        said = [self._say(address, {"group": group, "message": message}) for address in addresses]
        for address, failure in zip(addresses, await asyncio.gather(*said, return_exceptions=True), strict=True):
            if isinstance(failure, ConnectionRefusedError):
                self._remove_if_stale(address)

    async def flush(self) -> None:
        """Ends listening; channels made before are dead."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            (self.directory / self._address).unlink(missing_ok=True)
            with suppress(OSError):  # others are there
                self.directory.rmdir()
        self._unread.clear()
        self._groups.clear()
        self._news.clear()

    async def _listen(self) -> None:
        make_private(self.directory)
        self._address = f"{os.getpid()}-{os.urandom(4).hex()}"
        path = str(self.directory / self._address)
        self._server = await asyncio.start_unix_server(self._hear, path, limit=MAX_BYTES)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
                if length <= MAX_BYTES:
                    self._deliver(orjson.loads(await reader.readexactly(length)))
        except (OSError, EOFError, TimeoutError, orjson.JSONDecodeError) as exc:
            logger.debug("A message of another process broke off: %r", exc)
        finally:
            writer.close()

    def _deliver(self, said: Any) -> None:
        match said:
            case {"group": str(group), "message": dict(message)}:
                channels = self._groups.get(group, set())
            case {"channel": str(channel), "message": dict(message)}:
                channels = {channel}
            case _:
                return
        for channel in channels:
            if channel in self._unread:
                self._unread[channel].append(message)
                self._news[channel].set()

    async def _say(self, address: str, said: Message) -> None:
        if _ADDRESS.fullmatch(address) is None:
            raise FileNotFoundError(f"{address[:50]!r} is no process of this machine")
        data = orjson.dumps(said)
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_unix_connection(str(self.directory / address))
            try:
                writer.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
                await writer.drain()
            finally:
                writer.close()

    def _sockets(self) -> list[Path]:
        try:
            return sorted(self.directory.iterdir())
        except FileNotFoundError:
            return []  # nobody listens yet

    def _remove_if_stale(self, address: str) -> None:
        path = self.directory / address
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except OSError as exc:
            logger.debug("A socket that nobody listens on stays: %r", exc)


def short(directory: Path) -> Path:
    """The directory, or one of the same user's for it where sockets' paths may be as long as they are."""
    if len(str(directory)) <= LONGEST_DIRECTORY:
        return directory
    return Path(tempfile.gettempdir()) / f"ogw-{os.geteuid()}-{sha256(str(directory).encode()).hexdigest()[:16]}"


def make_private(directory: Path) -> None:
    """Raises PermissionError when others may write there: they could end calls, and read who makes them."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{directory} must be a directory of this user alone. Remove it, or set its mode to 700.")
