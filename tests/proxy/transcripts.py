"""What the fake sends for each endpoint, mode and kind of answer, byte for byte, with the counts it kept itself."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx

from proxy.fake_ollama import FakeOllama
from tests.no_tls import NO_TLS

TOKENS = 4
HI = [{"role": "user", "content": "hi"}]
USE_A_TOOL = [{"role": "user", "content": "use a tool"}]
FUNCTION = {
    "name": "get_time",
    "description": "x",
    "parameters": {"type": "object", "properties": {"zone": {"type": "string"}, "usage": {"type": "object"}}},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
ASKED = {"include_usage": True}

# name → (path, model, what is asked)
STREAMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("/api/chat", "llama3.2", {"messages": HI}),
    "chat, thinking": ("/api/chat", "qwen3:8b", {"messages": HI}),
    "chat, tools": ("/api/chat", "llama3.2", {"messages": USE_A_TOOL, "tools": TOOLS}),
    "generate": ("/api/generate", "llama3.2", {"prompt": "hi"}),
    "generate, thinking": ("/api/generate", "qwen3:8b", {"prompt": "hi"}),
    "openai chat": ("/v1/chat/completions", "llama3.2", {"messages": HI}),
    "openai chat, usage": ("/v1/chat/completions", "llama3.2", {"messages": HI, "stream_options": ASKED}),
    "openai chat, thinking": ("/v1/chat/completions", "qwen3:8b", {"messages": HI}),
    "openai chat, tools": ("/v1/chat/completions", "llama3.2", {"messages": USE_A_TOOL, "tools": TOOLS}),
    "completions": ("/v1/completions", "llama3.2", {"prompt": "hi"}),
    "completions, usage": ("/v1/completions", "llama3.2", {"prompt": "hi", "stream_options": ASKED}),
    "responses": ("/v1/responses", "llama3.2", {"input": "hi"}),
    "responses, thinking": ("/v1/responses", "qwen3:8b", {"input": "hi"}),
    "responses, tools": (
        "/v1/responses",
        "llama3.2",
        {"input": "use a tool", "tools": [{"type": "function", **FUNCTION}]},
    ),
    "messages": ("/v1/messages", "llama3.2", {"messages": HI, "max_tokens": 99}),
    "messages, thinking": ("/v1/messages", "qwen3:8b", {"messages": HI, "max_tokens": 99}),
    "messages, tools": (
        "/v1/messages",
        "llama3.2",
        {
            "messages": USE_A_TOOL,
            "max_tokens": 99,
            "tools": [{"name": "get_time", "input_schema": FUNCTION["parameters"]}],
        },
    ),
}
TERMINATORS = {
    "/v1/chat/completions": b"data: [DONE]",
    "/v1/completions": b"data: [DONE]",
    "/v1/responses": b"event: response.completed",
    "/v1/messages": b"event: message_stop",
}


@dataclass(frozen=True)
class Transcript:
    path: str
    model: str
    asked: dict[str, Any]
    content_type: bytes
    body: bytes
    prompt_tokens: int
    tokens: int

    @property
    def is_lines(self) -> bool:
        return b"ndjson" in self.content_type

    @property
    def end(self) -> int:
        """How many bytes must have come for the stream to be whole."""
        if self.is_lines:
            return self.body.rindex(b"}") + 1
        last = self.body.rindex(TERMINATORS[self.path])
        return self.body.index(b"\n\n", last) + 2

    def pieces_in(self, size: int) -> int:
        """In how many whole lines or events of so many bytes the model said something, judged by parsing them all."""
        return sum(end <= size for end in self._pieces)

    @cached_property
    def _pieces(self) -> list[int]:
        """Where the pieces end in which the model said something."""
        blank = b"\n" if self.is_lines else b"\n\n"
        ends, at = [], 0
        for part in self.body.split(blank)[:-1]:
            at += len(part) + len(blank)
            if self._says_something(part):
                ends.append(at)
        return ends

    def _says_something(self, part: bytes) -> bool:
        data = part if self.is_lines else part.partition(b"data: ")[2]
        if not data.startswith(b"{"):
            return False
        said = json.loads(data)
        if self.path == "/v1/responses":
            return said["type"].endswith(".delta")
        if self.path == "/v1/messages":
            return said["type"] == "content_block_delta"
        source = said
        if said.get("choices"):
            source = said["choices"][0].get("delta", said["choices"][0])
        elif "message" in said:
            source = said["message"]
        return any(source.get(name) for name in ("content", "reasoning", "thinking", "tool_calls", "text", "response"))


async def record_all(*, stream: bool) -> dict[str, Transcript]:
    """All of them from one fake. `stream` False: the same questions, answered in one piece."""
    found = {}
    async with FakeOllama(models=["llama3.2", "qwen3:8b"], slots=4) as fake:
        fake.faults(tokens=TOKENS)
        async with httpx.AsyncClient(base_url=fake.url, trust_env=False, verify=NO_TLS) as client:
            for name, (path, model, fields) in STREAMS.items():
                asked = {"model": model, "stream": stream, **fields}
                if stream and path in ("/v1/chat/completions", "/v1/completions"):
                    asked["stream_options"] = ASKED  # as the gateway does
                answer = await client.post(path, json=asked)
                assert answer.status_code == 200, answer.text
                call = fake.calls[-1]
                kind = answer.headers["content-type"].encode()
                found[name] = Transcript(path, model, fields, kind, answer.content, call.prompt_tokens, call.tokens)
    return found
