"""A generation: what the runner is asked, the pieces it makes, and what it says at the end."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from random import choices
from string import ascii_lowercase, digits
from types import TracebackType
from typing import Any, Self

import orjson

from proxy.fake_ollama import text
from proxy.fake_ollama.call import Call
from proxy.fake_ollama.errors import LOAD_FAILED, ApiError, Cut, RunnerError, SilentEnd
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.scheduler import AUTOMATIC, LoadOptions, Runner

THINKING, CONTENT, TOOL = "thinking", "content", "tool"
THINKING_TOKENS = 4
# A loop that awaits nothing must let others run now and then.
TURN = 256
TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; "
    "reduce the prompt or increase the context length"
)


@dataclass(slots=True)
class ToolUse:
    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def tokens(self) -> int:
        return text.tokens_of(len(orjson.dumps(self.arguments)) + len(self.name))


@dataclass(slots=True)
class Wish:
    """What a dialect asks of the runner."""

    model: Model
    load: LoadOptions = AUTOMATIC
    keep_alive: float | None = None
    # Bytes of all texts of the prompt.
    size: int = 0
    last_user_text: str = ""
    limit: int | None = None
    seed: int | None = None
    stops: Sequence[str] = ()
    # "json", a JSON schema, or None.
    format: Any = None
    tools: Sequence[dict[str, Any]] = ()
    think: bool = False
    truncate: bool = True


@dataclass(slots=True)
class Outcome:
    thinking: str = ""
    content: str = ""
    tools: list[ToolUse] = field(default_factory=list)


Piece = tuple[str, Any]


class Generation:
    """Within `async with`, it holds a slot of the model's runner."""

    runner: Runner

    def __init__(self, call: Call, wish: Wish) -> None:
        self.call = call
        self.wish = wish
        self.made = 0
        self.pieces = 0
        self.silent = False
        self.prompt_tokens = 0
        self.hidden_tokens = 0
        self.done_reason = "stop"
        self.began = time.perf_counter_ns()
        self.loaded = self.prefilled = self.began
        speed = call.fault.tokens_per_second
        self.speed = call.server.tokens_per_second if speed is None else speed
        self._pieces: Iterator[Piece] = iter(())
        self._length: int | None = 0

    async def __aenter__(self) -> Self:
        await self._acquire()
        try:
            await self.runner.take_slot()
        except BaseException:
            self.call.server.scheduler.release(self.runner)
            raise
        self._start()
        try:
            await self.call.hold_first_byte()
        except BaseException as error:
            self._stop(error)
            raise
        self.prefilled = time.perf_counter_ns()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(error)

    async def next(self) -> Piece | None:
        await self.call.step(self.pieces)
        if self.speed:
            await self._pace()
        piece = next(self._pieces, None)
        if piece is not None:
            self._count(piece)
        return piece

    async def rest(self) -> Outcome:
        """All that is left, for an answer that is sent whole."""
        outcome = Outcome()
        if self._plain:
            outcome.content = text.joined_words(self._plain)
            self.made = self.call.seen.tokens = len(self._plain)
            self.call.server.log.totals.tokens += self.made
            return outcome
        contents: list[str] = []
        while (piece := await self._next_or_silence()) is not None:
            kind, value = piece
            if kind is CONTENT:
                contents.append(value)
            elif kind is THINKING:
                outcome.thinking += value
            else:
                outcome.tools.append(value)
            if self.pieces % TURN == 0:
                await asyncio.sleep(0)
        outcome.content = "".join(contents)
        return outcome

    @property
    def eval_count(self) -> int:
        return self.made - self.hidden_tokens

    def durations(self) -> dict[str, int]:
        now = time.perf_counter_ns()
        return {
            "total_duration": now - self.began,
            "load_duration": self.loaded - self.began,
            "prompt_eval_duration": max(1, self.prefilled - self.loaded),
            "eval_duration": max(1, now - self.prefilled),
        }

    # Inside

    async def _acquire(self) -> None:
        call, wish = self.call, self.wish
        scheduler = call.server.scheduler
        self.runner = await scheduler.acquire(wish.model, wish.load, wish.keep_alive, call.fault)
        self.loaded = time.perf_counter_ns()
        try:
            self.prompt_tokens = self._prompt_tokens()
        except ApiError:
            scheduler.release(self.runner)
            raise
        call.seen.prompt_tokens = self.prompt_tokens

    async def _next_or_silence(self) -> Piece | None:
        try:
            return await self.next()
        except SilentEnd:
            self.silent = True
            return None

    def _prompt_tokens(self) -> int:
        if self.call.fault.load_error_500:
            raise ApiError(500, LOAD_FAILED)
        tokens = text.tokens_of(self.wish.size)
        if tokens <= self.runner.context:
            return tokens
        if not self.wish.truncate:
            raise ApiError(400, TOO_LONG)
        return self.runner.context

    def _start(self) -> None:
        totals = self.call.server.log.totals
        totals.generations_started += 1
        totals.generations_running += 1
        self.call.seen.generated = True
        self._plan()
        self.call.server.log.changed()

    def _stop(self, error: BaseException | None) -> None:
        self.runner.give_slot()
        self.call.server.scheduler.release(self.runner)
        totals = self.call.server.log.totals
        totals.generations_running -= 1
        if error is None and not self.silent:
            totals.generations_finished += 1
        elif self.call.seen.disconnected:
            totals.generations_disconnected += 1
        elif self.silent or isinstance(error, RunnerError | SilentEnd | Cut):
            totals.generations_failed += 1
        self.call.server.log.changed()

    def _plan(self) -> None:
        wish, fault = self.wish, self.call.fault
        self._plain: tuple[str, ...] = ()
        if fault.infinite:
            self._pieces = ((CONTENT, word) for word in text.words(wish.seed))
            return
        thinking = text.first_words(THINKING_TOKENS, wish.seed, "thought") if wish.think else ()
        tools = self._tools()
        content = () if tools else self._content()
        if wish.limit is not None and 0 < wish.limit <= len(thinking) + len(content):
            self.done_reason = "length"
            thinking = thinking[: wish.limit]
            content = content[: wish.limit - len(thinking)]
        if not thinking and not tools and not fault.steers_generation and not self.speed:
            self._plain = tuple(content)
        if wish.format and thinking:
            # The first of the two passes shows up as part of the second one's prompt.
            self.hidden_tokens = len(thinking)
            self.prompt_tokens += len(thinking)
        self._pieces = chain(
            zip(repeat(THINKING), thinking, strict=False),
            zip(repeat(CONTENT), content, strict=False),
            zip(repeat(TOOL), tools, strict=False),
        )

    def _content(self) -> Sequence[str]:
        wish, fault = self.wish, self.call.fault
        if fault.pieces is not None:
            content: Sequence[str] = tuple(fault.pieces)
        elif wish.format:
            schema = wish.format if isinstance(wish.format, dict) else {"properties": {"tok1": {"type": "string"}}}
            content = text.in_pieces(orjson.dumps(text.instance(schema)).decode())
        else:
            length = self.call.server.tokens if fault.tokens is None else fault.tokens
            content = text.first_words(length, wish.seed)
        return (text.cut_at_stop(content, wish.stops) or content) if wish.stops else content

    def _tools(self) -> list[ToolUse]:
        if not self.wish.tools or "tool" not in self.wish.last_user_text.lower():
            return []
        function = self.wish.tools[0].get("function") or {}
        arguments = text.instance({"type": "object", **(function.get("parameters") or {})})
        return [ToolUse("call_" + random_id(8), function.get("name") or "", arguments)]

    def _count(self, piece: Piece) -> None:
        count = piece[1].tokens if piece[0] is TOOL else 1
        self.made += count
        self.pieces += 1
        self.call.seen.tokens = self.made
        self.call.server.log.totals.tokens += count

    async def _pace(self) -> None:
        due = self.prefilled / 1e9 + (self.made + 1) / self.speed
        wait = due - time.perf_counter()
        await asyncio.sleep(max(0.0, wait))


def random_id(length: int, letters: str = ascii_lowercase + digits) -> str:
    return "".join(choices(letters, k=length))  # noqa: S311
