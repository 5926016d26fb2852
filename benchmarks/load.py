"""A load generator on raw sockets: keep-alive connections that send the same request again and again."""

import asyncio
from urllib.parse import urlsplit

END = b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """Sends the next request when an answer is whole (by Content-Length, or at the last chunk) and it is due."""

    def __init__(self, request: bytes, remaining: list[int], done: asyncio.Event, gap: float) -> None:
        """`gap`: seconds from one request to the next, as long as answers come in time; 0: without a pause."""
        self.request = request
        self.gap = gap
        self.due = 0.0
        self.remaining = remaining
        self.done = done
        self.buffer = b""
        self.length = -1  # bytes still to come; -1 = the head is not whole, -2 = chunked
        self.chunks = 0
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        if self.remaining[0] <= 0:
            self.transport.close()
            return
        self.remaining[0] -= 1
        self.length, self.buffer = -1, b""
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.chunks += 1
        if self.length == -1:
            self.buffer += data
            head, blank, rest = self.buffer.partition(b"\r\n\r\n")
            if not blank:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                raise AssertionError(head + rest)
            lower = head.lower()
            at = lower.find(b"content-length:")
            if at >= 0:
                self.length = int(lower[at + 15 :].split(b"\r\n", 1)[0])
            else:
                self.length = -2
            data, self.buffer = rest, b""
        if self.length >= 0:
            self.length -= len(data)
            ended = self.length <= 0
        else:
            self.buffer = (self.buffer + data)[-5:]
            ended = self.buffer == END
        if ended:
            self.answered()

    def answered(self) -> None:
        self.answers += 1
        if not self.gap:
            self.send()
            return
        loop = asyncio.get_running_loop()
        self.due = (self.due or loop.time()) + self.gap
        loop.call_at(self.due, self.send)

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set()


async def run(
    url: str, path: str, body: bytes, key: str, *, requests: int, connections: int, rate: float = 0.0, headers: str = ""
) -> int:
    """Sends so many requests over so many connections; returns how many reads brought bytes.

    `headers`: further ones, each with its line break.
    `rate`: requests a second, all connections together; 0: each as soon as the one before it is answered.
    """
    parts = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: application/json\r\nAuthorization: Bearer {key}\r\nUser-Agent: bench\r\n{headers}\r\n"
    remaining = [requests]
    loop = asyncio.get_running_loop()
    gap = connections / rate if rate else 0.0
    pairs = []
    for _ in range(connections):
        done = asyncio.Event()
        _, connection = await loop.create_connection(
            lambda done=done: Connection(head.encode() + body, remaining, done, gap), parts.hostname, parts.port
        )
        await asyncio.sleep(gap / connections)  # or all of them would send at the same moments
        pairs.append((connection, done))
    for _, done in pairs:
        await done.wait()
    answers = sum(connection.answers for connection, _ in pairs)
    assert answers == requests, f"{answers} of {requests} answers were whole"
    return sum(connection.chunks for connection, _ in pairs)
