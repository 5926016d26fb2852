"""What can be made to go wrong, and for which calls."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Self

HOSTILE_HEADERS = (
    ("Set-Cookie", "session=stolen; Path=/"),
    ("Server", "evil/1.0"),
    ("Location", "https://evil.example/"),
    ("Clear-Site-Data", '"*"'),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Credentials", "true"),
    ("X-Powered-By", "evil"),
)
NASTY_CONTENT = (
    "next\u0085line",
    "line\u2028separator\u2029paragraph",
    'imitates {"done":true,"eval_count":999999}',
    "\ndata: [DONE]\n\n",
    '"done":true',
    "vertical\x0btab\x0cfeed\x1cfile",
    "\u00e9\u4e16\U0001f600",
)


@dataclass
class Fault:
    """One rule. The first four fields say which calls it meets, the rest what happens to them."""

    times: int | None = None
    path: str | Sequence[str] | None = None
    model: str | None = None
    after: int = 0

    # Instead of an answer
    busy_503: bool = False
    status: int | None = None
    error: str | None = None
    error_as_json: bool = False
    lacks_model: bool = False
    load_error_500: bool = False
    reset_before_headers: bool = False
    close_before_headers: bool = False
    raw: str | None = None
    raw_base64: str | None = None
    raw_close: bool = True

    # Time
    slow_first_byte: float = 0.0
    hang_before_headers: bool = False
    hang_after_chunks: int | None = None
    gap: float = 0.0
    load_seconds: float | None = None
    hang_load: bool = False
    tokens_per_second: float | None = None

    # What is generated
    tokens: int | None = None
    infinite: bool = False
    content: Sequence[str] | None = None
    nasty_content: bool = False
    giant_line_mb: float = 0.0

    # How a stream ends
    error_after_chunks: int | None = None
    eof_after_chunks: int | None = None
    repetition_stop_after: int | None = None
    reset_after_chunks: int | None = None
    reset_mid_chunk: int | None = None
    truncate_chunk: int | None = None
    no_usage: bool = False
    usage: dict[str, Any] | None = None
    usage_drop: Sequence[str] = ()
    repeat_final: int = 1
    final_context: int | None = None

    # Uploads and progress
    hang_before_body: bool = False
    answers_before_body: int | None = None
    progress_mb: float = 0.0

    # Single routes
    version: str | None = None
    ps_omits: Sequence[str] | None = None
    ps_lists_loading: bool = False

    # The head of the answer
    garbage_status_line: str | None = None
    http_status: int | None = None
    early_responses: int = 0
    early_status: int = 103
    header_bomb: int = 0
    both_framings: bool = False
    switching_protocols: bool = False
    redirect: int | None = None
    location: str = "http://127.0.0.1:1/"
    headers: Sequence[tuple[str, str]] = ()
    hostile_headers: bool = False
    content_type: str | None = None
    gzip: bool = False
    gzip_bomb_mb: int = 0

    # Bytes and packets
    trickle: bool = False
    write_sizes: Sequence[int] | None = None
    packet_gap: float = 0.0
    coalesce: int = 1
    cut_after_bytes: int | None = None
    cut_counts_body_only: bool = False
    cut_with: str = "rst"
    close_idle_after_ms: float | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        unknown = value.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown fault: {', '.join(sorted(unknown))}")
        return cls(**value)

    def meets(self, path: str, model: str | None) -> bool:
        patterns = (self.path,) if isinstance(self.path, str) else self.path
        if patterns is not None and not any(fnmatchcase(path, pattern) for pattern in patterns):
            return False
        return self.model is None or (model is not None and self.model.lower() == model.lower())

    @cached_property
    def shapes_packets(self) -> bool:
        return bool(self.trickle or self.write_sizes or self.packet_gap or self.cut_after_bytes is not None)

    @cached_property
    def reshapes_head(self) -> bool:
        return bool(
            self.garbage_status_line
            or self.http_status
            or self.early_responses
            or self.header_bomb
            or self.both_framings
            or self.headers
            or self.hostile_headers
            or self.content_type
            or self.gzip
        )

    @cached_property
    def steers_generation(self) -> bool:
        """Whether the tokens must be made one by one even where nobody watches."""
        return bool(
            self.hang_after_chunks is not None
            or self.gap
            or self.error_after_chunks is not None
            or self.eof_after_chunks is not None
            or self.repetition_stop_after is not None
            or self.reset_after_chunks is not None
            or self.infinite
        )

    def altered(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The numbers at the end of an answer, as this fault would have them."""
        if self.no_usage:
            return {}
        changed = {**usage, **(self.usage or {})}
        return {name: value for name, value in changed.items() if name not in self.usage_drop}

    @cached_property
    def alters_usage(self) -> bool:
        return bool(self.no_usage or self.usage or self.usage_drop)

    @cached_property
    def pieces(self) -> Sequence[str] | None:
        """The chunks of content, if they are given."""
        if self.giant_line_mb:
            return ("x" * int(self.giant_line_mb * 1_000_000),)
        if self.nasty_content:
            return NASTY_CONTENT
        return self.content

    @cached_property
    def raw_bytes(self) -> bytes | None:
        if self.raw_base64 is not None:
            return base64.b64decode(self.raw_base64)
        return None if self.raw is None else self.raw.encode("latin-1")

    @cached_property
    def extra_headers(self) -> list[tuple[str, str]]:
        extra = [(name, value) for name, value in self.headers]
        if self.hostile_headers:
            extra.extend(HOSTILE_HEADERS)
        extra.extend((f"X-Bomb-{number}", "b" * 1000) for number in range(self.header_bomb))
        return extra


NO_FAULT = Fault()


class Gate:
    """Where hung phases wait to be released. Who comes after a release waits for the next."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.waiting = 0
        self._changed = changed
        self._event = asyncio.Event()

    async def wait(self) -> None:
        self.waiting += 1
        self._changed()
        try:
            await self._event.wait()
        finally:
            self.waiting -= 1

    def release(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


class FaultBook:
    """The rules in force. Those for a number of calls come before those until reset; else first come, first used."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self.rules.append(fault)
        self.rules.sort(key=lambda rule: rule.times is None)

    def clear(self) -> None:
        self.rules.clear()

    def take(self, path: str, model: str | None) -> Fault:
        for rule in self.rules:
            if not rule.meets(path, model):
                continue
            if rule.after > 0:
                rule.after -= 1
                continue
            self._use(rule)
            return rule
        return NO_FAULT

    def _use(self, rule: Fault) -> None:
        if rule.times is None:
            return
        rule.times -= 1
        if rule.times <= 0:
            self.rules.remove(rule)
