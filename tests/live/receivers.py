"""What alerts are sent to: a mail server and a web server, each on a real socket, that keep what they get."""

import asyncio
import json
from dataclasses import dataclass, field


class MailSink:
    """SMTP, as much of it as smtplib speaks. `mails`: (recipients, text) of each message taken."""

    def __init__(self):
        self.mails = []
        self.refuses = False
        self._server = None

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc):
        self._server.close()

    async def _serve(self, reader, writer):
        async def say(line):
            writer.write(line + b"\r\n")
            await writer.drain()

        recipients = []
        try:
            await say(b"220 sink")
            while line := await reader.readline():
                verb = line.split(b" ")[0].strip().upper()
                if verb == b"RCPT":
                    recipients.append(line.decode().split("<")[1].split(">")[0])
                if verb == b"DATA":
                    if self.refuses:
                        await say(b"451 not now")
                        continue
                    await say(b"354 go on")
                    text = b""
                    while (part := await reader.readline()) != b".\r\n":
                        text += part
                    self.mails.append((recipients, text.decode()))
                    recipients = []
                    await say(b"250 taken")
                elif verb == b"QUIT":
                    await say(b"221 bye")
                    break
                else:
                    await say(b"250 fine")
        except ConnectionError:
            pass
        finally:
            writer.close()

    def to(self, address):
        return [text for recipients, text in self.mails if address in recipients]


@dataclass
class Posted:
    path: str
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class HookSink:
    """A web server that answers each post with the next of `answers`, then with 204. `posts`: what came."""

    answers: list = field(default_factory=list)
    posts: list = field(default_factory=list)
    headers: bytes = b""
    hangs: bool = False

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook?of=tests"
        return self

    async def __aexit__(self, *exc):
        self._server.close()

    async def _serve(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.posts.append(Posted(head[0].split(" ")[1], headers, body))
            if self.hangs:
                await reader.read()
                return
            status = self.answers.pop(0) if self.answers else 204
            writer.write(b"HTTP/1.1 %d x\r\n%bcontent-length: 0\r\nconnection: close\r\n\r\n" % (status, self.headers))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def told(self, threshold):
        return [post for post in self.posts if post.json.get("threshold") == threshold]
