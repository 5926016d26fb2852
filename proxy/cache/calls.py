"""Calls of keys with a cache policy: from what is kept, from a flight, or with a flight of their own."""

import asyncio
import copy
import time
from functools import partial
from typing import NamedTuple

from proxy.cache import policy
from proxy.cache.carrier import Carrier
from proxy.cache.coalescing import Flight, Listener
from proxy.cache.entries import Entry
from proxy.cache.key import SLICE, Hash, Subject, material, normalised, steering
from proxy.cache.meters import KeptMeter, SharedMeter
from proxy.cache.policy import Rule, Wish
from proxy.cache.replay import replayed, without_reports
from proxy.cache.responses import BYPASSED, COALESCED, HITS, MISSES, Place
from proxy.call import Call
from proxy.client import Headers
from proxy.dialects.base import Request
from proxy.dispatch import Dispatch
from proxy.errors import Interruption, Refusal, Unavailable
from proxy.metering import Meter, StreamMeter
from proxy.relay import Renaming, all_renamed, renamed, renaming

# Of an answer that is kept while it is made, so that others can join and it can be stored.
MAX_KEPT = 4 << 20
# Seconds that a call waits to hear whether its model is still the same.
MODELS_PATIENCE = 2.0


class Question(NamedTuple):
    """A call that may share its answer."""

    rule: Rule
    wish: Wish
    subject: Subject


class SharingCall(Dispatch):
    """A call of a key whose rules have a cache policy."""

    request: Request
    verdict = b""  # what x-cache says
    age = -1  # seconds, of an answer that was kept
    flight: Flight | None = None

    def _written(self, request: Request) -> bytes:
        # Written where it is sent; most are not.
        self.request = request
        return b""

    async def _relay(self, payload: bytes) -> None:
        call = self.call
        assert call.key is not None
        assert call.key.cache is not None
        question = await self._question(call.key.cache)
        if question is None:
            await self._alone()
        else:
            await self._answer(question)

    async def _alone(self) -> None:
        """As calls are made without a cache."""
        self.verdict = b"BYPASS"
        self._count(BYPASSED)
        await super()._relay(super()._written(self.request))

    async def _question(self, rule: Rule) -> Question | None:
        """None where the answer must be this call's alone."""
        call, client = self.call, self.client
        assert call.route is not None
        assert call.model is not None
        path = call.route.path
        wish = policy.wish_of(client.listed(b"cache-control"))
        if not wish.may_keep or not policy.may_share(rule.policy, path, self.request):
            return None
        digest = await self._digest()
        if not digest:
            return None
        model = call.model.served.canonical
        sent = steering(client.headers)
        return Question(rule, wish, Subject(rule.scope, rule.epoch(model), path, model, digest, call.context, sent))

    async def _digest(self) -> str:
        """Of the model as it is now; "" where that is not known."""
        call, fleet = self.call, self.runtime.fleet
        assert call.model is not None
        name = call.model.served.canonical
        if not fleet.knows_model(name):
            moment = time.monotonic()
            try:
                async with asyncio.timeout(MODELS_PATIENCE):
                    await fleet.refresh(tags=True)
            except TimeoutError:
                return ""
            if not fleet.knows_model(name, moment):
                return ""
        return fleet.digest_of(call)

    async def _hash(self, subject: Subject, request: Request, without: str = "") -> Hash:
        parts = material(subject, normalised(request, without))
        made = Hash(self.runtime.cache.secret)
        if len(parts[-1]) <= SLICE:
            return made.add(parts)
        for _ in made.adding(parts):
            await asyncio.sleep(0)
        return made

    async def _answer(self, question: Question) -> None:
        call, cache, rule = self.call, self.runtime.cache, question.rule
        made = await self._hash(question.subject, self.request)
        place = Place(made.key, rule.scope, question.subject.model)
        if question.wish.may_get:
            entry = cache.memory.get(place.key, self.runtime.now(), rule.ttl_seconds)
            if entry is None and cache.shared is not None and cache.shared.usable:
                (entry,) = await cache.get([place], rule, self.runtime.now())
            if entry is not None and await self._replay(entry, rule):
                return
            # After a stream that cannot be had in one piece, one of those who waited for it leads the next.
            while (flight := cache.flights.joinable(place.key, stream=call.stream)) is not None:
                if await self._follow(flight, rule, COALESCED):
                    return
        await self._lead(question, place, self.request)

    async def _lead(self, question: Question, place: Place, request: Request, most: int = MAX_KEPT) -> None:
        """Starts the work, whoever else may join it. `most`: bytes of an answer that is kept while it is made."""
        call, cache = self.call, self.runtime.cache
        assert call.model is not None
        room = cache.room_for_flight(most)
        flight = Flight(place.key, call.model.served.upstream, stream=call.stream, max_kept=room)
        carrier = Carrier(self.runtime, call, self.client, flight, partial(self._keep, flight, question, place))
        payload = super()._written(request)
        listener = flight.join(call)
        flight.task = asyncio.create_task(carrier.fly(self.content_type, payload), name=f"flight {call.id}")
        cache.flights.add(flight)
        await self._follow(flight, question.rule, MISSES, listener)

    def _keep(self, flight: Flight, question: Question, place: Place, made: Call) -> None:
        entry = self._kept(flight, question, made)
        if entry is not None:
            self.runtime.cache.put(place, entry, question.rule)

    def _kept(self, flight: Flight, question: Question, made: Call) -> Entry | None:
        """What is stored of a whole answer; None for one that is not certain."""
        subject, meter = question.subject, made.meter
        if made.outcome != "ok" or made.error or meter is None or not meter.complete or meter.error:
            return None
        counts = meter.counts()
        if counts.odd or (meter.reports and counts.estimated) or not flight.whole or not flight.size:
            return None
        if made.model_digest != subject.digest or self.runtime.fleet.digest_of(made) != subject.digest:
            return None  # the model was changed meanwhile
        assert flight.head is not None
        return Entry(
            flight.body,
            flight.stream,
            dict(flight.head)[b"content-type"],
            flight.named,
            subject.model,
            subject.digest,
            subject.scope,
            self.runtime.now(),
            counts.prompt_tokens,
            counts.completion_tokens,
            (counts.load_ns + counts.prefill_ns + counts.decode_ns) // 1000,
            counts.estimated,
        )

    # From what is kept

    async def _replay(self, entry: Entry, rule: Rule) -> bool:
        """Whether the answer could be brought into the form that is asked for."""
        call = self.call
        assert call.route is not None
        made = replayed(entry, call.route.path, stream=call.stream, hides_usage=call.hides_usage)
        if made is None:
            return False
        body, kind = made
        names = renaming(entry.named, call.asked)
        if names is not None:
            body = all_renamed(body, names) if call.stream else renamed(body, names)
        call.model_digest = entry.digest
        await self._send_kept([entry], body, kind, rule)
        return True

    async def _send_kept(self, entries: list[Entry], body: bytes, kind: bytes, rule: Rule) -> None:
        call = self.call
        call.note_first_byte()
        call.dispatched_at = call.first_byte_at
        call.meter = KeptMeter(entries)
        call.status, call.outcome, call.is_free = 200, "cached", not rule.charges
        call.bytes_out = len(body)
        self.verdict = b"HIT"
        self.age = max(int(self.runtime.now() - min(entry.kept_at for entry in entries)), 0)
        self._count(HITS)
        self._save(entries)
        headers = self._headers()
        headers.append((b"content-type", kind))
        if not call.stream:
            headers.append((b"content-length", b"%d" % len(body)))
        call.headers_sent = True
        await self.client.start(200, headers)
        self._settle()
        await self.client.end(body)

    # From a flight

    async def _follow(self, flight: Flight, rule: Rule, what: int, listener: Listener | None = None) -> bool:
        """Passes on what comes of a flight. False where nothing was sent and it cannot be had this way.

        `what`: MISSES for the one that started it.
        """
        call = self.call
        listener = listener or flight.join(call)
        self.flight = flight
        self.verdict = b"MISS" if what == MISSES else b"COALESCED"
        if what == MISSES:
            self._count(MISSES)
        call.end_within(self.runtime.configuration.total_seconds)
        if flight.made is not None and flight.made.dispatched_at:
            call.deadline_reason = Interruption.FIRST_BYTE  # for the live pages
        try:
            await self._until_head(flight, listener)
            if flight.stream == call.stream:
                await self._pass_along(flight, listener, rule, what)
                return True
            return await self._put_together(flight, listener, rule)
        except BaseException:
            # A client may leave as soon as it has the last object, before the backend has ended its answer.
            left_with_all = call.interruption is Interruption.CLIENT_GONE and self._has_all(flight, listener)
            if not self.settled:
                self._note(flight, listener, rule, whole=left_with_all)
            if left_with_all:
                self._settle()
            raise
        finally:
            flight.leave(listener)

    async def _until_head(self, flight: Flight, listener: Listener) -> None:
        if flight.stream == self.call.stream:
            await flight.until_begun(listener)
        else:
            await flight.until_finished(listener)
        if flight.refusal is not None and (flight.head is None or flight.stream != self.call.stream):
            raise self._own(flight)

    async def _pass_along(self, flight: Flight, listener: Listener, rule: Rule, what: int) -> None:
        """The answer as it comes, from its beginning."""
        call, client = self.call, self.client
        assert flight.made is not None
        assert flight.head is not None
        if flight.is_first(listener):
            call.backend, call.queue_seconds = flight.made.backend, flight.made.queue_seconds
        names = renaming(flight.named, call.asked)
        chunk = self._taken(flight, listener)
        if not call.stream:
            chunk, names = self._in_one_piece(flight, chunk, names), None
        headers = self._headers() + flight.head
        if not call.stream and flight.finished and flight.refusal is None:
            headers.append((b"content-length", b"%d" % len(chunk)))
        call.status, call.headers_sent = 200, True
        await client.start(200, headers)
        if not chunk and not flight.finished:
            await client.write(b"")  # the head must not wait for the first token
        while not flight.finished:
            if chunk:
                self._note_progress(flight, chunk)
                await client.write(self._mended(chunk, names))
            await flight.until_more(listener)
            chunk = self._taken(flight, listener)
        if flight.refusal is not None:
            if chunk:
                await client.write(self._mended(chunk, names))
            raise self._own(flight)
        if not call.first_byte_at:
            call.note_first_byte()
        self._note(flight, listener, rule, whole=True)
        self._count_shared(flight, listener, what)
        if flight.made.outcome != "ok":
            chunk = self._in_own_words(flight, chunk)
        chunk = self._mended(chunk, names)
        call.bytes_out += len(chunk)
        self._settle()
        await client.end(chunk)

    def _taken(self, flight: Flight, listener: Listener) -> bytes:
        """What has come since. Raises Unavailable where some of it is not kept any more."""
        if not flight.is_lost(listener):
            return flight.take(listener)
        if listener.waits_for_end:
            message = "The answer is larger than what the gateway can hold of it now. Ask again, or for less."
            raise Unavailable("too_large_to_share", message, retry_after=5)
        raise Unavailable("too_slow", "The client reads too slowly for an answer that is shared. Ask again.")

    def _in_one_piece(self, flight: Flight, chunk: bytes, names: Renaming | None) -> bytes:
        """An answer that is no stream, or the beginning of a large one, as this client gets it."""
        return chunk if names is None else renamed(chunk, names)

    async def _put_together(self, flight: Flight, listener: Listener, rule: Rule) -> bool:
        """A stream that has ended, as an answer in one piece."""
        call, made = self.call, flight.made
        assert made is not None
        assert call.route is not None
        assert flight.head is not None
        if made.outcome != "ok" or not flight.whole:
            return False
        entry = Entry(flight.body, True, b"", flight.named, "", "", "", 0.0)
        whole = replayed(entry, call.route.path, stream=False, hides_usage=False)
        if whole is None:
            return False
        body, kind = whole
        names = renaming(flight.named, call.asked)
        body = renamed(body, names) if names is not None else body
        call.note_first_byte()
        self._note(flight, listener, rule, whole=True)
        self._count_shared(flight, listener, COALESCED)
        call.status, call.headers_sent, call.bytes_out = 200, True, len(body)
        headers = self._headers()
        headers += [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await self.client.start(200, headers)
        self._settle()
        await self.client.end(body)
        return True

    def _note_progress(self, flight: Flight, chunk: bytes) -> None:
        call, made = self.call, flight.made
        assert made is not None
        if not call.first_byte_at:
            call.note_first_byte()
            call.dispatched_at = max(made.dispatched_at, call.started_at)
            call.meter = SharedMeter(made.meter) if made.meter is not None else None
        call.bytes_out += len(chunk)

    def _mended(self, chunk: bytes, names: Renaming | None) -> bytes:
        """Whole lines or events as this client gets them."""
        if self.call.stream and self.call.hides_usage:
            chunk = without_reports(chunk)
        return all_renamed(chunk, names)

    def _has_all(self, flight: Flight, listener: Listener) -> bool:
        """Whether the client, which has left, has the last object of its stream, even if the backend goes on."""
        made = flight.made
        if made is None or not isinstance(made.meter, StreamMeter) or not self.call.headers_sent:
            return False
        if flight.finished or listener.received < flight.size or made.meter.rest:
            return False
        # A copy: what it watches may go on, for others.
        meter: Meter = copy.copy(made.meter)
        meter.finish()
        return meter.complete

    def _note(self, flight: Flight, listener: Listener, rule: Rule, *, whole: bool = False) -> None:
        """What the work was, for the record. The first of the listeners pays for it, when it ends or with the last.

        `whole`: the client has all of it, or is about to.
        """
        call, made = self.call, flight.made
        assert made is not None
        pays = flight.payer is listener if flight.finished else len(flight.listeners) == 1
        call.model_digest = made.model_digest
        if pays:
            call.backend, call.chosen, call.attempts = made.backend, made.chosen, made.attempts
            call.failed_attempts, call.queue_seconds = made.failed_attempts, made.queue_seconds
            call.dispatched_at, call.first_byte_at = made.dispatched_at, made.first_byte_at
            call.meter = made.meter
        else:
            call.backend, call.queue_seconds = None, 0.0
            call.is_free = not rule.charges
            if made.dispatched_at:
                call.dispatched_at = max(made.dispatched_at, call.started_at)
            call.meter = SharedMeter(made.meter) if made.meter is not None else None
        if whole or flight.finished:
            outcome = made.outcome or "ok"
            call.outcome = "coalesced" if outcome == "ok" and not pays else outcome
            call.error = made.error

    def _count_shared(self, flight: Flight, listener: Listener, what: int) -> None:
        assert flight.made is not None
        if what == MISSES or flight.made.meter is None:
            return
        counts = flight.made.meter.counts()
        gpu_us = (counts.load_ns + counts.prefill_ns + counts.decode_ns) // 1000
        self._count(COALESCED, gpu_us=gpu_us, tokens=counts.prompt_tokens + counts.completion_tokens)

    def _own(self, flight: Flight) -> Refusal:
        """The refusal that the flight ended with, with this call's own id."""
        shared, made = flight.refusal, flight.made
        assert shared is not None
        assert made is not None
        own: Refusal = shared.__class__.__new__(shared.__class__, *shared.args)
        own.__dict__.update(shared.__dict__)
        own.headers = dict(shared.headers)
        own.message = shared.message.replace(made.id, self.call.id)
        return own

    def _in_own_words(self, flight: Flight, chunk: bytes) -> bytes:
        assert flight.made is not None
        return chunk.replace(flight.made.id.encode(), self.call.id.encode())

    def _headers(self) -> Headers:
        headers = super()._headers()
        headers.append((b"x-cache", self.verdict))
        if self.age >= 0:
            headers.append((b"age", b"%d" % self.age))
        return headers

    def _count(self, what: int, *, gpu_us: int = 0, tokens: int = 0) -> None:
        assert self.call.key is not None
        self.runtime.cache.count(self.call.key.tenant_id, what, gpu_us=gpu_us, tokens=tokens)

    def _save(self, entries: list[Entry]) -> None:
        assert self.call.key is not None
        gpu_us = sum(entry.gpu_us for entry in entries)
        tokens = sum(entry.prompt_tokens + entry.completion_tokens for entry in entries)
        self.runtime.cache.save(self.call.key.tenant_id, gpu_us, tokens)
