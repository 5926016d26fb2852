"""Embeddings, input by input: only those that are not known yet go upstream."""

from dataclasses import replace
from typing import NamedTuple

from proxy.cache.calls import Question, SharingCall
from proxy.cache.coalescing import Flight, Listener
from proxy.cache.entries import Entry
from proxy.cache.policy import EMBEDDINGS
from proxy.cache.replay import JSON
from proxy.cache.responses import COALESCED, Place
from proxy.cache.vectors import OddVectors, joined, shares, split
from proxy.call import Call
from proxy.dialects.base import Request
from proxy.errors import BadGateway
from proxy.relay import Renaming

# Calls with more are passed on as they are: all their vectors would have to be held at once.
MAX_INPUTS = 512
# Bytes of an answer that is taken apart.
MAX_ANSWER = 64 << 20
# Whose answers hold one vector for each input; the older endpoint takes one input and is kept as it is.
_LISTS = ("/api/embed", "/v1/embeddings")


class Inputs(NamedTuple):
    """The inputs of one call, and what is known of them."""

    texts: list[str]
    places: dict[str, Place]
    known: dict[str, Entry]
    missing: list[str]  # each once, in order

    @property
    def are_all_missing(self) -> bool:
        """What is sent is what was asked."""
        return len(self.missing) == len(self.texts)


class EmbeddingCall(SharingCall):
    inputs: Inputs | None = None  # where its answer holds one vector for each
    path = ""

    async def _answer(self, question: Question) -> None:
        self.path = question.subject.path
        given = self.request[EMBEDDINGS[self.path]]
        texts = [given] if isinstance(given, str) else given
        if self.path not in _LISTS or not all(texts):
            await super()._answer(question)
        elif len(texts) > MAX_INPUTS:
            await self._alone()
        else:
            self.inputs = inputs = await self._look_up(question, texts)
            if inputs.missing:
                await self._ask_for(inputs, question)
            else:
                await self._send_known(inputs, question)

    async def _look_up(self, question: Question, texts: list[str]) -> Inputs:
        subject, cache = question.subject, self.runtime.cache
        base = await self._hash(subject, self.request, EMBEDDINGS[self.path])
        places = {text: Place(base.with_input(text), subject.scope, subject.model) for text in texts}
        known: dict[str, Entry] = {}
        if question.wish.may_get:
            found = await cache.get(list(places.values()), question.rule, self.runtime.now())
            known = {text: entry for text, entry in zip(places, found, strict=True) if entry is not None}
        return Inputs(texts, places, known, [text for text in places if text not in known])

    async def _send_known(self, inputs: Inputs, question: Question) -> None:
        entries = [inputs.known[text] for text in inputs.texts]
        tokens = sum(entry.prompt_tokens for entry in entries)
        body = joined(self.path, self.call.asked, [entry.body for entry in entries], tokens, {})
        self.call.model_digest = question.subject.digest
        await self._send_kept(entries, body, JSON[self.path == "/api/embed"], question.rule)

    async def _ask_for(self, inputs: Inputs, question: Question) -> None:
        """Sends what is not known, or follows a call that asks for just that."""
        subject, cache = question.subject, self.runtime.cache
        request: Request = self.request
        if not inputs.are_all_missing:
            request = {**request, EMBEDDINGS[self.path]: inputs.missing}
        made = await self._hash(subject, request)
        place = Place(made.key, subject.scope, subject.model)
        known = [inputs.known[text] for text in inputs.texts if text in inputs.known]
        self._save(known)
        if question.wish.may_get:
            flight = cache.flights.joinable(place.key, stream=False)
            if flight is not None:
                await self._follow(flight, question.rule, COALESCED)
                return
        await self._lead(question, place, request, MAX_ANSWER)

    async def _until_head(self, flight: Flight, listener: Listener) -> None:
        if self.inputs is not None:
            await flight.until_finished(listener)
        await super()._until_head(flight, listener)

    def _keep(self, flight: Flight, question: Question, place: Place, made: Call) -> None:
        """Each vector for itself. Their tokens were counted together: who had how many is an estimate."""
        inputs = self.inputs
        if inputs is None:
            super()._keep(flight, question, place, made)
            return
        entry = self._kept(flight, question, made)
        if entry is None:
            return
        try:
            vectors = split(self.path, entry.body, len(inputs.missing)).each
        except OddVectors:
            return
        sizes = [len(text.encode()) for text in inputs.missing]
        each = zip(
            inputs.missing, vectors, shares(entry.prompt_tokens, sizes), shares(entry.gpu_us, sizes), strict=True
        )
        for text, vector, tokens, gpu_us in each:
            one = replace(entry, body=vector, prompt_tokens=tokens, gpu_us=gpu_us, estimated=len(sizes) > 1)
            self.runtime.cache.put(inputs.places[text], one, question.rule)

    def _in_one_piece(self, flight: Flight, chunk: bytes, names: Renaming | None) -> bytes:
        inputs, made = self.inputs, flight.made
        assert made is not None
        if inputs is None or (inputs.are_all_missing and not inputs.known) or made.outcome != "ok":
            return super()._in_one_piece(flight, chunk, names)
        try:
            sent = split(self.path, chunk, len(inputs.missing))
        except OddVectors:
            message = f"The backend gave no valid answer. Our id is {self.call.id}."
            raise BadGateway("backend_broken", message) from None
        self.verdict = b"PARTIAL" if inputs.known else self.verdict
        vectors = {**{text: entry.body for text, entry in inputs.known.items()}}
        vectors.update(zip(inputs.missing, sent.each, strict=True))
        tokens = sum(inputs.known[text].prompt_tokens for text in inputs.texts if text in inputs.known)
        if made.meter is not None:
            tokens += made.meter.counts().prompt_tokens
        each = [vectors[text] for text in inputs.texts]
        return joined(self.path, self.call.asked, each, tokens, sent.rest if self.path == "/api/embed" else {})
