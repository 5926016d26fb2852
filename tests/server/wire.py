"""Bytes to and from the server, with nothing in between that would correct them."""

import json
import queue
import select
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 20
HERE = Path(__file__).parent


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)


class Wire:
    """One client connection."""

    def __init__(self, port, host="127.0.0.1", source=None, receive_buffer=None):
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.sock.bind((source, 0))
        self.sock.settimeout(PATIENCE)
        self.sock.connect((host, port))
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)
        return self

    def more(self):
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            return b""
        self.buffer += data
        return data

    def until(self, mark):
        while mark not in self.buffer:
            if not self.more():
                raise EOFError(f"closed before {mark!r}: {self.buffer[-200:]!r}")
        taken, _, self.buffer = self.buffer.partition(mark)
        return taken

    def answer(self, method="GET"):
        head = self.until(b"\r\n\r\n").decode("latin-1")
        status_line, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        status = int(status_line.split()[1])
        if method == "HEAD" or status in (100, 204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = self.chunked()
        elif "content-length" in headers:
            body = self.exactly(int(headers["content-length"]))
        else:
            body = self.rest()
        return Answer(status, headers, body)

    def chunk(self):
        size = int(self.until(b"\r\n"), 16)
        data = self.exactly(size)
        assert self.exactly(2) == b"\r\n"
        return data

    def chunked(self):
        body = b""
        while data := self.chunk():
            body += data
        return body

    def exactly(self, size):
        while len(self.buffer) < size:
            if not self.more():
                raise EOFError(f"closed with {size - len(self.buffer)} bytes missing")
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def rest(self):
        while self.more():
            pass
        taken, self.buffer = self.buffer, b""
        return taken

    def closed(self):
        """True once the server has closed; False if it sends anything more instead."""
        return not self.buffer and self.rest() == b""

    def ended_cleanly(self):
        """The server closed without a reset, so nothing it had sent can have been lost."""
        try:
            return not self.buffer and self.sock.recv(1) == b""
        except ConnectionError:
            return False

    def silent(self):
        """Whether nothing is there to be read right now."""
        return not self.buffer and not select.select([self.sock], [], [], 0)[0]


class Server:
    """A server process of its own."""

    def __init__(self, **options):
        options = {"port": 0, "sweep_seconds": 0.1, **options}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "serve.py"), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said = queue.SimpleQueue()
        self.errors = []
        self.listeners = [
            threading.Thread(target=self._listen, daemon=True),
            threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True),
        ]
        for thread in self.listeners:
            thread.start()
        try:
            ready = self.hears("Ollama Gateway listening on ")
        except EOFError:
            self.end()
            raise EOFError("".join(self.errors)) from None
        self.port = int(ready.rpartition(":")[2])

    def _listen(self):
        for line in self.process.stdout:
            self.said.put(line.rstrip())
        self.said.put(None)

    def hears(self, start):
        while True:
            line = self.said.get(timeout=PATIENCE)
            if line is None:
                raise EOFError("the server has ended")
            if line.startswith(start):
                return line

    def wire(self, **options):
        return Wire(self.port, **options)

    def ask(self, path):
        with self.wire() as wire:
            return wire.send(f"GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".encode()).answer().json()

    def seen(self):
        return [entry for entry in self.ask("/_seen") if entry["kind"] != "start"]

    def saw(self, kind, path):
        return self.ask(f"/_await?kind={kind}&path={path}")

    def rss(self):
        return self.ask("/_process")["rss"]

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait(PATIENCE)
        for thread in self.listeners:
            thread.join(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()
        return code
