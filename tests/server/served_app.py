"""The application behind the server under test: it records what reaches it, and says so at /_seen."""

import asyncio
import json
import os
import resource
import time
from pathlib import Path
from urllib.parse import parse_qs

CHUNK = b"x" * 65536


class Diary:
    """Everything that reached the application, and a way to wait for it."""

    def __init__(self):
        self.entries = []
        self.changed = asyncio.Event()
        self.released = asyncio.Event()

    def note(self, kind, **facts):
        self.entries.append({"kind": kind, **facts})
        self.changed.set()

    async def until(self, kind, path):
        while True:
            found = [entry for entry in self.entries if entry["kind"] == kind and entry.get("path") == path]
            if found:
                return found[0]
            self.changed.clear()
            await self.changed.wait()


diary = Diary()


async def answer(send, body, status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive):
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


def facts_of(scope):
    return {
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode("latin-1"),
        "query": scope["query_string"].decode("latin-1"),
        "version": scope["http_version"],
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
    }


async def control(scope, send):
    path = scope["path"]
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    if path == "/_seen":
        result = diary.entries
    elif path == "/_await":
        result = await diary.until(query["kind"], query["path"])
    elif path == "/_release":
        diary.released.set()
        result = None
    elif path == "/_process":
        rss_pages = int(Path("/proc/self/statm").read_text().split()[1])
        result = {
            "pid": os.getpid(),
            "rss": rss_pages * resource.getpagesize(),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }
    elif path == "/_reset":
        diary.entries.clear()
        diary.released.clear()
        result = None
    await answer(send, json.dumps(result).encode(), headers=[(b"content-type", b"application/json")])


async def application(scope, receive, send):
    path = scope["path"]
    if scope["type"] == "websocket":
        await accept_when_released(scope, receive, send)
        return
    if path.startswith("/_"):
        await control(scope, send)
        return
    diary.note("request", **facts_of(scope))
    scope["extensions"]["gateway.disconnect"](lambda: diary.note("callback", path=path))
    await ROUTES.get(path, echo)(scope, receive, send)


async def accept_when_released(scope, receive, send):
    await receive()
    diary.note("handshake", path=scope["path"])
    await diary.released.wait()
    await send({"type": "websocket.accept"})
    await receive()


async def echo(scope, receive, send):
    body = await read_body(receive)
    if body is None:
        diary.note("gone", path=scope["path"])
        return
    diary.note("body", path=scope["path"], size=len(body))
    await answer(send, json.dumps({**facts_of(scope), "body": body.decode("latin-1")}).encode())


async def refuse_unread(scope, receive, send):
    await answer(send, b"not for you", status=401)


async def hold(scope, receive, send):
    """Read all, then wait for a release or for the client to leave."""
    await read_body(receive)
    diary.note("holding", path=scope["path"])
    leaving = asyncio.ensure_future(receive())
    released = asyncio.ensure_future(diary.released.wait())
    await asyncio.wait({leaving, released}, return_when=asyncio.FIRST_COMPLETED)
    released.cancel()
    if leaving.done():
        diary.note("gone", path=scope["path"], message=leaving.result()["type"])
    else:
        leaving.cancel()
        await answer(send, b"held")


async def never_read(scope, receive, send):
    """Leave the body alone until released."""
    diary.note("holding", path=scope["path"])
    await diary.released.wait()
    await answer(send, b"done", status=413)


async def endless(scope, receive, send):
    """Chunk after chunk until the client has gone."""
    await read_body(receive)
    gone = asyncio.Event()
    scope["extensions"]["gateway.disconnect"](gone.set)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    sent = 0
    while not gone.is_set():
        # A copy each, as a backend's chunks would be.
        await send({"type": "http.response.body", "body": bytes(bytearray(CHUNK)), "more_body": True})
        sent += len(CHUNK)
        await asyncio.sleep(0)
    diary.note("gone", path=scope["path"], sent=sent)


async def stream(scope, receive, send):
    await read_body(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for number in range(5):
        await send({"type": "http.response.body", "body": b"chunk %d\n" % number, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def head_first(scope, receive, send):
    """Let the head go out alone, and the body when released."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    await diary.released.wait()
    await send({"type": "http.response.body", "body": b"late", "more_body": False})


async def fail(scope, receive, send):
    raise RuntimeError("on purpose")


async def fail_midway(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("on purpose")


async def set_header(scope, receive, send):
    await answer(send, b"", headers=[(b"x-note", await read_body(receive))])


async def hang_in_a_thread(scope, receive, send):
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, time.sleep, 1000)
    await answer(send, b"it hangs")


async def block_the_loop(scope, receive, send):
    print("blocking", flush=True)
    time.sleep(1000)


async def keep_sending(scope, receive, send):
    """Send after the client has gone: nothing may be raised."""
    gone = asyncio.Event()
    scope["extensions"]["gateway.disconnect"](gone.set)
    await gone.wait()
    await answer(send, b"into the void")
    late = []
    scope["extensions"]["gateway.disconnect"](lambda: late.append(True))
    diary.note("survived", path=scope["path"], called_at_once=bool(late))


ROUTES = {
    "/unread": refuse_unread,
    "/hold": hold,
    "/never-read": never_read,
    "/endless": endless,
    "/stream": stream,
    "/head-first": head_first,
    "/fail": fail,
    "/fail-midway": fail_midway,
    "/set-header": set_header,
    "/keep-sending": keep_sending,
    "/hang": hang_in_a_thread,
    "/block": block_the_loop,
}


class Runtime:
    """Counts calls in flight as the gateway does; a drain that takes too long releases them."""

    async def start(self):
        diary.note("start")

    def listening(self, places):
        pass

    def begin_drain(self):
        print("begin_drain", flush=True)

    async def drained(self, timeout):
        open_calls = [entry for entry in diary.entries if entry["kind"] == "holding"]
        if open_calls and timeout > 0:
            try:
                async with asyncio.timeout(timeout):
                    await diary.released.wait()
            except TimeoutError:
                diary.released.set()
                print("cut", flush=True)
        print("drained", flush=True)

    async def close(self):
        print("closed", flush=True)


runtime = Runtime()
