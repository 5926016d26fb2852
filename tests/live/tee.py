"""A relay on a socket between the gateway and a backend, that keeps what the backend sent."""

import asyncio
from typing import Self
from urllib.parse import urlsplit

import httptools


class Answers:
    """Splits the bytes of one backend connection into the bodies of its answers."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body


class Questions:
    """The targets of the requests on it."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.targets.append(url.decode())


class Tee:
    def __init__(self, backend: str) -> None:
        self.backend = urlsplit(backend)
        self.connections: list[tuple[Questions, Answers]] = []

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self.relay, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        self.tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def bodies(self, path: str) -> list[bytes]:
        """The bodies of all answers to requests of a path."""
        found = []
        for questions, answers in self.connections:
            pairs = zip(questions.targets, answers.bodies, strict=False)
            found += [body for target, body in pairs if target == path]
        return found

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        up_reader, up_writer = await asyncio.open_connection(self.backend.hostname, self.backend.port)
        questions, answers = Questions(), Answers()
        self.connections.append((questions, answers))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.pump(reader, up_writer, questions.parser.feed_data))
                group.create_task(self.pump(up_reader, writer, answers.parser.feed_data))
        except asyncio.CancelledError:
            pass  # by the end of the test; start_server() would log it
        finally:
            writer.close()
            up_writer.close()

    @staticmethod
    async def pump(reader, writer, note) -> None:
        while data := await reader.read(65536):
            note(data)
            writer.write(data)
            await writer.drain()
        writer.write_eof()
