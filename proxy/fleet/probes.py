"""What each backend says of itself, asked with httpx off the path of calls."""

import asyncio
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from proxy.backend_url import refuse_address
from proxy.fleet.state import BackendState, InstalledModel, WarmModel
from proxy.fleet.tls import context_for_proxy
from proxy.headers import LOOP_MARKER
from proxy.model_names import InvalidModelName
from proxy.model_names import parse as parse_model_name
from proxy.snapshot import Backend

logger = logging.getLogger(__name__)

# Seconds of silence, and for one question in all. A backend that hangs hangs nobody but its own probe.
TIMEOUT = httpx.Timeout(2.0, connect=1.0)
QUESTION_SECONDS = 5.0
MAX_ANSWER = 8 << 20
# Between two readings of /api/tags; /api/version and /api/ps are read in each round.
TAGS_SECONDS = 30.0
# Between two rounds, however often somebody wants to know: a round costs milliseconds of the loop.
SHORTEST_PAUSE = 0.1
# What is shown of a backend's own words (B15).
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,40}\Z")
# Goes into records. What else a backend may say, such as a NUL, PostgreSQL would refuse them for.
_DIGEST = re.compile(r"(?:sha256:)?[0-9a-f]{1,64}")


def make_client(
    tls: ssl.SSLContext | bool, instance: bytes = b"", proxy: httpx.Proxy | None = None
) -> httpx.AsyncClient:
    """A client that believes neither the environment's proxies nor .netrc, and follows no redirect (B14).

    `instance`: our mark, by which a gateway knows that it is asking itself (N11).
    """
    return httpx.AsyncClient(
        verify=tls,
        proxy=proxy,
        trust_env=False,
        follow_redirects=False,
        timeout=TIMEOUT,
        headers={LOOP_MARKER: instance},
    )


def outbound_proxy(backend: Backend) -> httpx.Proxy | None:
    if not backend.proxy_url:
        return None
    user, password = backend.proxy_credential or (b"", b"")
    auth = (user.decode(), password.decode()) if backend.proxy_credential else None
    return httpx.Proxy(backend.proxy_url, auth=auth, ssl_context=context_for_proxy(backend))


async def resolve(url: str) -> tuple[str, ...]:
    """The addresses that a backend's host has now, as literals. Raises OSError, or ValueError for forbidden ones."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        found = [ip_address(host)]
    except ValueError:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            answers = await loop.getaddrinfo(host, parts.port, type=socket.SOCK_STREAM)
        found = [ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
    for address in found:
        refuse_address(address)
    return tuple(dict.fromkeys(str(address) for address in found))


async def ask(client: httpx.AsyncClient, state: BackendState, path: str) -> dict[str, Any]:
    """One JSON object from a backend. Raises httpx.HTTPError, TimeoutError or ValueError."""
    async with asyncio.timeout(QUESTION_SECONDS):
        body = await _read(client, state, path)
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise ValueError(f"{path} did not answer a JSON object")  # noqa: TRY004
    return answer


async def _read(client: httpx.AsyncClient, state: BackendState, path: str) -> bytearray:
    parts = urlsplit(state.backend.url)
    headers = {
        "host": state.host.decode(),
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "ollama-gateway",
    }
    if state.backend.credential is not None:
        name, value = state.backend.credential
        headers[name.decode("ascii")] = value.decode("latin-1")
    # Not the URL: httpx would ask for the name's address again, and might get one that was not checked (B14).
    # A proxy, whose address the pool's is, is told the name: what it means is the proxy's to know.
    address = parts.hostname if state.backend.proxy_url else state.pool.endpoint.addresses[0]
    url = httpx.URL(scheme=parts.scheme, host=address, port=parts.port, path=path)
    extensions = {"sni_hostname": parts.hostname}
    async with client.stream("GET", url, headers=headers, extensions=extensions) as response:
        if response.status_code == 508:
            raise ValueError("It is this gateway itself.")
        if response.status_code != 200:
            raise ValueError(f"{path} answered {response.status_code}")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_ANSWER:
                raise ValueError(f"{path} answered more than {MAX_ANSWER} bytes")
    return body


def problem_of(error: Exception) -> str:
    """What went wrong, in our own words: a page that showed the backend's would be a port scanner (B15)."""
    if isinstance(error, httpx.ConnectTimeout):
        return "It does not accept connections."
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "It does not answer in time."
    if isinstance(error, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "Its certificate is not trusted. Give the CA certificate that it was signed with."
    if isinstance(error, httpx.ConnectError):
        return "It cannot be connected to."
    if isinstance(error, httpx.HTTPError):
        return "It does not answer in valid HTTP."
    return str(error)


def installed_models(answer: dict[str, Any]) -> dict[str, InstalledModel]:
    """/api/tags by canonical name; items that are not what they should be are left out."""
    models = {}
    for name, item in _named_items(answer):
        details = item.get("details")
        trained = details.get("context_length") if isinstance(details, dict) else 0
        models[name] = InstalledModel(
            digest=_digest_in(item),
            trained_context=trained if type(trained) is int else 0,
            item=item,
            remote=bool(item.get("remote_host") or item.get("remote_model")),
        )
    return models


def warm_models(answer: dict[str, Any], installed: dict[str, InstalledModel]) -> dict[str, WarmModel]:
    """/api/ps by canonical name. Copies share a runner, which is listed under one of their names: match digests."""
    warm: dict[str, WarmModel] = {}
    by_digest: dict[str, WarmModel] = {}
    for name, item in _named_items(answer):
        length = item.get("context_length")
        model = WarmModel(length if type(length) is int and length > 0 else 0, item)
        warm[name] = model
        if digest := _digest_in(item):
            by_digest[digest] = model
    for name, known in installed.items():
        if name not in warm and known.digest in by_digest:
            warm[name] = by_digest[known.digest]
    return warm


def _digest_in(item: dict[str, Any]) -> str:
    """Up to 64 characters; "" for what is none."""
    digest = item.get("digest")
    return digest[:64] if isinstance(digest, str) and _DIGEST.fullmatch(digest) else ""


def _named_items(answer: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    items = answer.get("models")
    for item in items if isinstance(items, list) else ():
        name = item.get("model") or item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            continue
        try:
            found.append((parse_model_name(name).canonical, item))
        except InvalidModelName:
            continue
    return found


async def probe(client: httpx.AsyncClient, state: BackendState, *, tags: bool) -> None:
    """Brings a state up to date. `tags`: also ask which models are installed."""
    try:
        version = (await ask(client, state, "/api/version")).get("version")
        state.version = version if isinstance(version, str) and _VERSION.match(version) else ""
        if tags or not state.models:
            state.models = installed_models(await ask(client, state, "/api/tags"))
        state.warm = warm_models(await ask(client, state, "/api/ps"), state.models)
    except (httpx.HTTPError, ValueError, OSError) as exc:
        logger.debug("The probe of %s failed: %r", state.name, exc)
        failed(state, problem_of(exc))
    else:
        if state.failed_probes and state.probed:
            logger.warning("Backend %s answers again", state.name)
        state.failed_probes = 0
        state.problem = ""
        state.probed = state.answered = True


def failed(state: BackendState, problem: str) -> None:
    state.failed_probes += 1
    state.probed = True
    state.problem = problem
    if state.failed_probes in (1, 2):
        logger.warning("Backend %s does not answer (%d): %s", state.name, state.failed_probes, problem)


class Watch:
    """Probes one backend again and again, for as long as it is in the rules."""

    def __init__(
        self,
        state: BackendState,
        tls: ssl.SSLContext | None,
        seconds: float,
        after_round: Callable[[], None],
        instance: bytes = b"",
    ) -> None:
        self.state = state
        self.seconds = seconds
        self._asked_at = 0.0
        self._after_round = after_round
        self._client = make_client(tls or False, instance, outbound_proxy(state.backend))
        self._wanted = asyncio.Event()
        self._round: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tags_at = 0.0
        self._changed_at = 0.0
        self._task = asyncio.create_task(self._run(), name=f"probe {state.name}")

    def stop(self) -> None:
        self._task.cancel()

    def want(self) -> None:
        """Has it asked soon, without waiting for it."""
        self._wanted.set()

    def note_change(self) -> None:
        """What is installed there has changed: what was heard before is not believed, and it is asked soon."""
        self._changed_at = time.monotonic()
        self._wanted.set()

    def knows_models(self, since: float) -> bool:
        """Whether it was asked what is installed after a moment (monotonic), and after the last known change."""
        return self._tags_at >= max(since, self._changed_at)

    def knows_since(self, *, tags: bool) -> float:
        """When (monotonic) it was last asked what is warm or, with `tags`, what is installed."""
        return self._tags_at if tags else self._asked_at

    async def newer_than(self, moment: float, *, tags: bool) -> None:
        """Returns when it was asked after a moment (monotonic), or failed to answer; asks if need be."""
        while self.knows_since(tags=tags) < moment:
            self._wanted.set()
            await asyncio.shield(self._round)
            if self.state.failed_probes:
                return

    async def _run(self) -> None:
        async with self._client:
            while True:
                # Whoever asks for a round wants to know what is installed: a listing, or a model nobody has yet.
                wanted = self._wanted.is_set()
                self._wanted.clear()
                began = time.monotonic()
                await self._one_round(tags=wanted)
                self._asked_at = began
                finished, self._round = self._round, asyncio.get_running_loop().create_future()
                finished.set_result(None)
                try:
                    self._after_round()
                except Exception:
                    logger.exception("What follows a probe of %s failed", self.state.name)  # the next must come (L5)
                await asyncio.sleep(SHORTEST_PAUSE)
                try:
                    async with asyncio.timeout(self.seconds):
                        await self._wanted.wait()
                except TimeoutError:
                    pass

    async def _one_round(self, *, tags: bool) -> None:
        state, now = self.state, time.monotonic()
        tags = tags or now - self._tags_at >= TAGS_SECONDS or state.failed_probes > 0
        try:
            addresses = await resolve(state.backend.proxy_url or state.backend.url)
            state.pool.endpoint = replace(state.pool.endpoint, addresses=addresses)
            await probe(self._client, state, tags=tags)
        except ValueError as exc:
            self._forget_addresses()
            failed(state, f"Its name cannot be used: {exc}")
        except OSError as exc:
            failed(state, f"Its name cannot be used: {exc}")
            if not state.is_up:
                self._forget_addresses()  # else one hiccup of a name server would fail the calls of a good backend
        except Exception:
            # Whatever it was, this backend must go on being probed (L5).
            logger.exception("The probe of %s failed in a way it should not", state.name)
            failed(state, "internal error, see the log")
        if tags and not state.failed_probes:
            self._tags_at = now

    def _forget_addresses(self) -> None:
        pool = self.state.pool
        pool.endpoint = replace(pool.endpoint, addresses=())
