"""From a request line to a handler, as net/http's mux, gin and its CORS middleware do it."""

import ipaddress
import posixpath
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from proxy.fake_ollama import anthropic, audio, catalogue, embeddings, native, openai, responses, transfers
from proxy.fake_ollama.call import Call

Handler = Callable[[Call], Awaitable[None]]
NATIVE, OPENAI, ANTHROPIC = "native", "openai", "anthropic"


@dataclass(frozen=True)
class Route:
    handler: Handler
    family: str = NATIVE


EXACT: dict[str, dict[str, Route]] = {
    "/": {"GET": Route(catalogue.root), "HEAD": Route(catalogue.root)},
    "/api/version": {"GET": Route(catalogue.version), "HEAD": Route(catalogue.version)},
    "/api/status": {"GET": Route(catalogue.status)},
    "/api/tags": {"GET": Route(catalogue.tags), "HEAD": Route(catalogue.tags)},
    "/api/ps": {"GET": Route(catalogue.ps)},
    "/api/show": {"POST": Route(catalogue.show)},
    "/api/generate": {"POST": Route(native.generate)},
    "/api/chat": {"POST": Route(native.chat)},
    "/api/embed": {"POST": Route(embeddings.embed)},
    "/api/embeddings": {"POST": Route(embeddings.legacy)},
    "/api/pull": {"POST": Route(transfers.pull)},
    "/api/push": {"POST": Route(transfers.push)},
    "/api/create": {"POST": Route(transfers.create)},
    "/api/copy": {"POST": Route(catalogue.copy)},
    "/api/delete": {"DELETE": Route(catalogue.delete)},
    "/api/me": {"POST": Route(catalogue.me)},
    "/api/signout": {"POST": Route(catalogue.signout)},
    "/api/experimental/web_search": {"POST": Route(catalogue.needs_account)},
    "/api/experimental/web_fetch": {"POST": Route(catalogue.needs_account)},
    "/api/experimental/model-recommendations": {"GET": Route(catalogue.recommendations)},
    "/v1/chat/completions": {"POST": Route(openai.chat, OPENAI)},
    "/v1/completions": {"POST": Route(openai.completions, OPENAI)},
    "/v1/embeddings": {"POST": Route(embeddings.openai, OPENAI)},
    "/v1/responses": {"POST": Route(responses.create, OPENAI)},
    "/v1/messages": {"POST": Route(anthropic.messages, ANTHROPIC)},
    "/v1/audio/transcriptions": {"POST": Route(audio.transcribe, OPENAI)},
    "/v1/models": {"GET": Route(openai.models, OPENAI)},
}
# One segment after the prefix.
PREFIXED: dict[str, dict[str, Route]] = {
    "/api/blobs/": {"POST": Route(transfers.upload), "HEAD": Route(transfers.has_blob)},
    "/api/user/keys/": {"DELETE": Route(catalogue.signout)},
    "/v1/models/": {"GET": Route(openai.model, OPENAI)},
}

LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104
ALLOWED_ORIGINS = (
    *(f"{scheme}://{host}{port}" for host in LOCAL_HOSTS for scheme in ("http", "https") for port in ("", ":*")),
    *(f"{scheme}://*" for scheme in ("app", "file", "tauri", "vscode-webview", "vscode-file")),
)
STAINLESS = [
    "Arch",
    "Async",
    "Custom-Poll-Interval",
    "Helper-Method",
    "Lang",
    "Os",
    "Package-Version",
    "Poll-Helper",
    "Retry-Count",
    "Runtime",
    "Runtime-Version",
    "Timeout",
]
PREFLIGHT = (
    ("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,"
        + ",".join(f"X-Stainless-{name}" for name in STAINLESS),
    ),
    ("Access-Control-Max-Age", "43200"),
    ("Vary", "Origin"),
    ("Vary", "Access-Control-Request-Method"),
    ("Vary", "Access-Control-Request-Headers"),
)
BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def find(path: str) -> tuple[dict[str, Route], str]:
    """The routes of a path by method, and the value of its last segment where that is a parameter."""
    routes = EXACT.get(path)
    if routes is not None:
        return routes, ""
    for prefix, methods in PREFIXED.items():
        rest = path.removeprefix(prefix)
        if rest != path and rest and "/" not in rest:
            return methods, rest
    return {}, ""


@lru_cache(4096)
def decoded_path(target: str) -> str | None:
    """The path as Go decodes it; None if it cannot."""
    raw = target.partition("?")[0].encode("latin-1")
    if raw.startswith((b"http://", b"https://")):
        raw = b"/" + raw.partition(b"://")[2].partition(b"/")[2]
    if BAD_ESCAPE.search(raw) or not raw.startswith(b"/"):
        return None
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")


@lru_cache(4096)
def cleaned(path: str) -> str:
    clean = posixpath.normpath("/" + path.lstrip("/"))
    return clean + "/" if path.endswith(("/", "/.", "/..")) and clean != "/" else clean


async def answer(call: Call, target: str, allowed: Sequence[str]) -> None:
    """Everything up to the handler."""
    request, path = call.request, call.path
    if path not in EXACT and (other := elsewhere(request.method, path)):
        await redirect(call, target, other)
        return
    if request.origin is not None and not await allows_origin(call, allowed):
        return
    if not await allows_host(call):
        return
    routes, call.parameter = find(path)
    route = routes.get(request.method)
    if route is not None:
        await route.handler(call)
    elif routes:
        await call.answer.whole(405, "text/plain", b"405 method not allowed", [("Allow", ", ".join(routes))])
    else:
        await call.reply_text(404, "404 page not found")


def family(path: str) -> str:
    for route in find(path)[0].values():
        return route.family
    return NATIVE


def elsewhere(method: str, path: str) -> str | None:
    """Where a path that is not clean, or has a slash too many, is redirected to."""
    clean = cleaned(path)
    if clean != path:
        return clean
    if path.endswith("/") and method in find(path.rstrip("/"))[0]:
        return path.rstrip("/")
    return None


async def redirect(call: Call, target: str, path: str) -> None:
    query = target.partition("?")[2]
    location = quote(path, safe="/:@!$&'()*+,;=~-._", errors="surrogateescape") + (f"?{query}" if query else "")
    headers = [("Location", location)]
    method = call.request.method
    if method not in ("GET", "HEAD"):
        await call.answer.whole(307, None, b"", headers)
        return
    status, reason = (301, "Moved Permanently") if method == "GET" else (307, "Temporary Redirect")
    body = f'<a href="{location}">{reason}</a>.\n\n'.encode()
    await call.answer.whole(status, "text/html; charset=utf-8", body, headers)


async def allows_origin(call: Call, allowed: Sequence[str]) -> bool:
    request, answer = call.request, call.answer
    origin = request.origin
    if not origin or origin in (f"http://{request.host}", f"https://{request.host}"):
        return True
    patterns = (*ALLOWED_ORIGINS, *allowed)
    if not any(fnmatchcase(origin, pattern) for pattern in patterns):
        await answer.whole(403, None)
        return False
    everyone = "*" in allowed
    answer.extra = (("Access-Control-Allow-Origin", "*" if everyone else origin),)
    if request.method == "OPTIONS":
        await answer.whole(204, None, b"", PREFLIGHT)
        return False
    if not everyone:
        answer.extra = (*answer.extra, ("Vary", "Origin"))
    return True


async def allows_host(call: Call) -> bool:
    kind = host_kind(call.request.host or "")
    if kind == "name" and call.request.method == "OPTIONS":
        await call.answer.whole(204, None)
    elif kind is None:
        await call.answer.whole(403, None)
    else:
        return True
    return False


@lru_cache(1024)
def host_kind(host: str) -> str | None:
    """ "ip" or "name" of this machine or its network; None for a host that a page elsewhere rebound."""
    bare = re.sub(r":\d*$", "", host) if host.count(":") <= 1 or host.startswith("[") else host
    try:
        address = ipaddress.ip_address(bare.strip("[]"))
    except ValueError:
        name = bare.lower()
        local = name in ("", "localhost", socket.gethostname().lower())
        return "name" if local or name.endswith((".localhost", ".local", ".internal")) else None
    return "ip" if address.is_loopback or address.is_private or address.is_unspecified else None
