"""All backends, and the slot that a call is given on one of them."""

import asyncio
import logging
import ssl
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import cast
from urllib.parse import urlsplit

from proxy.call import Call
from proxy.configuration import Configuration
from proxy.default_models import NOTHING, WORDS, survey
from proxy.errors import BadRequest, NotFound, Refusal, Unavailable
from proxy.fleet import selection, targets
from proxy.fleet.merging import Item, merged
from proxy.fleet.probes import Watch
from proxy.fleet.state import BackendState
from proxy.fleet.tls import context_for, context_for_proxy
from proxy.queue import Line
from proxy.snapshot import Backend, Model
from proxy.upstream import via_httpx
from proxy.upstream.wire import Endpoint, Pool

logger = logging.getLogger(__name__)

# How long a call waits for the first probe of a gateway that has just started, or for a fresh listing.
PROBE_PATIENCE = 3.0
# How old what is known of the installed models may be for an answer that was kept to be given.
FRESH_SECONDS = 1.0
# At most this share of calls is sent a second time (B12), after a burst.
RETRY_SHARE = 0.1
RETRY_BURST = 10.0


class Fleet:
    def __init__(self, configuration: Configuration, instance: bytes = b"") -> None:
        """`instance`: how gateways of this installation mark what they send."""
        self.configuration = configuration
        self._instance = instance
        self.states: dict[int, BackendState] = {}
        self.line = Line(configuration.line_length)
        # Replaced when it changes: answers that were worked out with it are known by its identity.
        self.survey = NOTHING
        self._watches: dict[int, Watch] = {}
        self._retries = RETRY_BURST
        # How often each backend left rotation, by name.
        self.openings: dict[str, int] = {}

    def apply(self, backends: Sequence[Backend]) -> None:
        """Takes over the backends of a new snapshot. Those that left finish their calls on the old connections."""
        current = {backend.id: backend for backend in backends}
        for backend_id, state in list(self.states.items()):
            backend = current.get(backend_id)
            if backend is None or _is_elsewhere(state.backend, backend):
                self._forget(backend_id)
        for backend in backends:
            if backend.id in self.states:
                self.states[backend.id].backend = backend
            else:
                self._add(backend)
        self.look_around()
        self.line.serve_all()

    def close(self) -> None:
        for backend_id in list(self.states):
            self._forget(backend_id)

    def sweep(self) -> None:
        """Once a second: closes connections that were idle for too long."""
        for state in self.states.values():
            state.pool.drop_old()

    async def refresh(self, *, tags: bool) -> None:
        """Asks the backends what is warm and, with `tags`, what is installed; waits, but not for those that fail."""
        moment = time.monotonic()
        stale = [
            watch
            for watch in self._watches.values()
            if watch.knows_since(tags=tags) < moment
            and watch.state.backend.enabled
            and not (watch.state.probed and watch.state.failed_probes)
        ]
        if stale:
            tasks = [asyncio.ensure_future(watch.newer_than(moment, tags=tags)) for watch in stale]
            try:
                await asyncio.wait(tasks, timeout=PROBE_PATIENCE)
            finally:
                for task in tasks:
                    task.cancel()  # those that are late, or that nobody waits for any more

    def free_slot_for(self, call: Call, tried: Collection[str] = ()) -> BackendState | None:
        """A slot on a backend for one call if one is free and nobody waits; the caller gives it back with `release`.

        `tried`: names of backends that failed this call already.
        """
        assert call.model is not None
        if self.line.is_waited_for(call.model.served.canonical):
            return None
        return self._place(call, tried)

    async def slot_for(self, call: Call, tried: Collection[str] = ()) -> BackendState:
        """A slot on a backend for one call, if need be after a wait; the caller gives it back with `release`.

        Raises NotFound, BadRequest, Unavailable.
        """
        assert call.model is not None
        name = call.model.served.canonical

        def give_back(state: BackendState) -> None:
            state.give_back(name)
            self.withdrew(call, state)

        if (state := self.free_slot_for(call, tried)) is not None:
            return state
        await self.check_served(call, tried)
        if (state := self.free_slot_for(call, tried)) is not None:
            return state
        return await self.line.wait(name, partial(self._place, call, tried), give_back)

    def choice(self, call: Call, now: float, tried: Collection[str] = ()) -> BackendState | None:
        """The backend whose slot a call would be given; None where none is free. `now`: monotonic."""
        assert call.model is not None
        return selection.choose(self.holders(call, now), call.model.served.canonical, now, tried)

    def _place(self, call: Call, tried: Collection[str]) -> BackendState | None:
        assert call.model is not None
        name, now = call.model.served.canonical, time.monotonic()
        holders = self.holders(call, now)
        state = selection.choose(holders, name, now, tried)
        if state is not None:
            call.chosen = name in state.warm, state.total_in_flight, len(holders)
            state.take(name)
            call.decides = state.breaker.begin(now)
        return state

    async def any_holder(self, call: Call, tried: Collection[str] = ()) -> BackendState:
        """A backend to ask about a model; takes no slot. Raises NotFound, Unavailable."""
        assert call.model is not None
        name = call.model.served.canonical
        await self.check_served(call, tried)
        holders = [state for state in self.holders(call, time.monotonic()) if state.name not in tried]
        return min(holders, key=lambda state: (name not in state.warm, state.total_in_flight))

    async def target_for(self, wanted: str, model: Model | None) -> BackendState:
        """The backend that a call of model management is for (see targets.choose)."""
        if not wanted and model is not None and len(self._enabled()) > 1:
            # Who has it decides where it is deleted: that must be known, not remembered.
            await self.refresh(tags=True)
        try:
            return targets.choose(self._enabled(), wanted, model)
        except Unavailable:
            # The gateway may have just started.
            await self.refresh(tags=True)
            return targets.choose(self._enabled(), wanted, model)

    def ask_again(self, backend_id: int) -> None:
        """What a backend has may have changed: it is asked at once, and nobody waits for it."""
        watch = self._watches.get(backend_id)
        if watch is not None:
            watch.note_change()

    def has_another(self, call: Call, tried: Collection[str]) -> bool:
        """Whether a backend that was not tried could serve a call."""
        return any(state.name not in tried for state in self.holders(call, time.monotonic()))

    def withdrew(self, call: Call, state: BackendState) -> None:
        """A call is over. If it was to decide about a half-open breaker and did not, the next one will."""
        if call.decides:
            call.decides = False
            state.breaker.withdrew()

    def release(self, state: BackendState, model: str) -> None:
        state.give_back(model)
        self.line.serve(model)

    def may_retry(self) -> bool:
        """Whether the budget of second attempts has room; takes one if so."""
        if self._retries < 1:
            return False
        self._retries -= 1
        return True

    def call_began(self) -> None:
        self._retries = min(self._retries + RETRY_SHARE, RETRY_BURST)

    def lacks(self, state: BackendState, model: str) -> None:
        """A backend said 404: it has lost the model since it was last asked."""
        state.models.pop(model, None)
        state.warm.pop(model, None)

    def failed(self, state: BackendState, what: str) -> None:
        """A fault of a backend, for its breaker."""
        if state.breaker.failed(time.monotonic()):
            self.openings[state.name] = self.openings.get(state.name, 0) + 1
            logger.warning(
                "Backend %s left rotation after %d failures, the last: %s", state.name, state.breaker.failures, what
            )

    @property
    def version(self) -> str:
        """The oldest version of the backends that are up: what every one of them can do."""
        versions = [state.version for state in self.states.values() if state.is_up and state.version]
        return min(versions, key=_version_key, default="0.0.0")

    def installed(self) -> list[tuple[str, Item]]:
        """(canonical name, item of /api/tags) of all enabled backends that are up, newest first, each name once."""
        lists = ({name: model.item for name, model in state.models.items()} for state in self._up())
        return merged(lists, "modified_at")

    def warm(self) -> list[tuple[str, Item]]:
        """(canonical name, item of /api/ps) of all backends that are up, latest expiry first, each name once."""
        # Without the copies, which are as warm but not listed.
        lists = (
            {
                name: model.item
                for name, model in state.warm.items()
                if name in (str(model.item.get("model", "")).lower(), str(model.item.get("name", "")).lower())
            }
            for state in self._up()
        )
        return merged(lists, "expires_at")

    def look_around(self) -> None:
        """Finds out what names of models mean, from what the backends have."""
        names = [name for state in self.states.values() if state.backend.enabled for name in state.models]
        found = survey(names, [(name, model.item) for state in self._up() for name, model in state.models.items()])
        if found != self.survey:
            self.survey = found

    def _after_round(self) -> None:
        self.look_around()
        self.line.serve_all()

    def _enabled(self) -> list[BackendState]:
        return [state for state in self.states.values() if state.backend.enabled]

    def _up(self) -> list[BackendState]:
        return [state for state in self._enabled() if state.is_up]

    def holders(self, call: Call, now: float) -> list[BackendState]:
        """The backends that could serve a call, whether or not they have a free slot. `now`: monotonic."""
        assert call.model is not None
        name, pinned = call.model.served.canonical, call.model.policy.num_ctx
        assert call.key is not None
        cloud = call.key.may_use_cloud
        holders = [state for state in self._up() if state.may_serve(name, cloud=cloud)]
        if call.context:
            holders = [state for state in holders if state.offers_context(name, call.context, pinned)]
        return selection.in_rotation(holders, now)

    def knows_model(self, name: str, since: float = 0.0) -> bool:
        """Whether what is known of the backends that have a model is young enough to answer in their place.

        While somebody asks, it is brought up to date before it is too old. `since`: a moment (monotonic) after which
        they must have been asked; 0: a short while ago.
        """
        now = time.monotonic()
        seconds = min(FRESH_SECONDS, self.configuration.probe_seconds)
        known = True
        for watch in self._watches.values():
            if name not in watch.state.models or watch.knows_models(since or now - seconds / 2):
                continue
            if watch.state.backend.enabled and watch.state.is_up:
                watch.want()
                known = known and watch.knows_models(since or now - seconds)
        return known

    def digest_of(self, call: Call) -> str:
        """Of the weights that would answer a call; "" where it is not known, or not the same on all backends.

        What is forwarded to somebody else may change without a word.
        """
        assert call.model is not None
        name = call.model.served.canonical
        found = {
            "" if state.models[name].remote else state.models[name].digest
            for state in self.holders(call, time.monotonic())
        }
        return found.pop() if len(found) == 1 else ""

    async def check_served(self, call: Call, tried: Collection[str] = ()) -> None:
        """Raises the refusal that says why no backend will ever serve this call as things are."""
        if self.has_another(call, tried):
            return
        # The gateway may have just started, or the model may have just been pulled.
        await self.refresh(tags=True)
        if not self.has_another(call, tried):
            raise self._why_unserved(call, tried)

    def _why_unserved(self, call: Call, tried: Collection[str]) -> Refusal:
        assert call.model is not None
        assert call.route is not None
        assert call.key is not None
        name, cloud = call.model.served.canonical, call.key.may_use_cloud
        holders = [state for state in self._enabled() if state.may_serve(name, cloud=cloud)]
        if tried:
            return Unavailable("backend_failed", "The backends that have this model failed. Try again.", retry_after=2)
        if call.context and any(state.is_up for state in holders):
            most = max(state.context_of(name, call.model.policy.num_ctx) for state in holders)
            return BadRequest(
                f"num_ctx {call.context} is more than the {most} tokens that this gateway runs '{call.asked}' "
                "with. Leave num_ctx out, or ask an administrator to raise it under Model policies.",
                "context_too_long",
            )
        if not self.states:
            return Unavailable("no_backend", "No backend is set up yet. An administrator can add one.", retry_after=30)
        if holders or not self._up():
            return Unavailable("no_backend", "No backend that has this model answers now. Try again.", retry_after=5)
        message = call.route.unknown_model.format(call.asked, call.model.asked.shown)
        if call.model.stands_for in WORDS:
            message = (
                f'"{call.asked}" stands for {WORDS[call.model.stands_for]}, {call.model.served.upstream}, which no '
                "backend has. Pull it, or choose another in the admin under Default models."
            )
        return NotFound("model_not_found", message)

    def _add(self, backend: Backend) -> None:
        try:
            tls = context_for(backend)
        except (ssl.SSLError, ValueError, TypeError) as exc:
            logger.warning("Backend %s: its certificates cannot be read (%s)", backend.name, exc)
            tls = ssl.create_default_context()
        parts = urlsplit(backend.url)
        endpoint = Endpoint((), parts.port or 0, tls, parts.hostname, self.configuration.connect_seconds)
        state = BackendState(backend, _pool(backend, endpoint))
        self.states[backend.id] = state
        seconds = self.configuration.probe_seconds
        self._watches[backend.id] = Watch(state, tls, seconds, self._after_round, self._instance)

    def _forget(self, backend_id: int) -> None:
        self.states.pop(backend_id).pool.close()
        self._watches.pop(backend_id).stop()


def _is_elsewhere(old: Backend, new: Backend) -> bool:
    """Whether what connections depend on has changed."""
    return _way(old) != _way(new)


def _way(backend: Backend) -> tuple[object, ...]:
    return (
        backend.url, backend.transport, backend.ca_certificates, backend.client_certificate, backend.client_key,
        backend.proxy_url, backend.proxy_credential, backend.http2,
    )  # fmt: skip


def _pool(backend: Backend, endpoint: Endpoint) -> Pool:
    if backend.transport == "wire":
        return Pool(endpoint)
    proxy = None
    if backend.proxy_url:
        parts = urlsplit(backend.proxy_url)
        tls = context_for_proxy(backend)
        proxy = via_httpx.Proxy(parts.scheme, parts.hostname or "", parts.port or 0, backend.proxy_credential, tls)
    # Both have one interface, to which tests/proxy/upstream holds them.
    return cast("Pool", via_httpx.Pool(endpoint, proxy, http2=backend.http2))


def _version_key(version: str) -> list[int]:
    return [int(part) if part.isdecimal() else 0 for part in version.split("-")[0].split(".")]
