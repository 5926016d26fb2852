"""What was asked and answered, for tenants that have it stored: taken as it passes, read when the call has ended.

For everybody else nothing of this exists: no text is looked at, none is copied, none comes near a file.
"""

from collections.abc import Awaitable, Iterator
from typing import Any

import orjson

from proxy.call import Call
from proxy.client import Client
from proxy.dialects.base import Request
from usage.models.texts import ANSWER_CHARACTERS, PROMPT_CHARACTERS
from usage.redaction import source
from usage.texts import Text

# Of an answer, what is kept to be read: a stream needs a line for each token, of one in one piece all is needed.
STREAM_BYTES = 32 << 10
UNARY_BYTES = 256 << 10
# More than is stored, because what is redacted becomes shorter.
NEEDED = 2 * ANSWER_CHARACTERS + 1


class Listening:
    """Stands between a call and its client's server, and hears the beginning of the answer."""

    __slots__ = ("_heard", "_prompt", "_room", "_send")

    def __init__(self, call: Call, client: Client, request: Request) -> None:
        self._prompt = prompt_of(request)
        self._heard = bytearray()
        self._room = STREAM_BYTES if call.stream else UNARY_BYTES
        self._send = client.send
        client.send = self

    def __call__(self, event: dict[str, Any]) -> Awaitable[None]:
        if self._room > 0 and event["type"] == "http.response.body":
            piece = event["body"][: self._room]
            self._heard += piece
            self._room -= len(piece)
        return self._send(event)

    def text(self, call: Call) -> Text:
        """To be stored, which redacts it."""
        assert call.key is not None
        key = call.key
        model = call.model.served.canonical if call.model is not None else ""
        answer = answer_of(bytes(self._heard)) if call.status == 200 else ""
        return call.id, call.started_epoch, key.tenant_id, key.user_id, key.id, model, self._prompt, answer


def prompt_of(request: Request) -> str:
    """The beginning of what was asked: the last message of the user, the prompt, or the input. "" where there is none.

    Text only; images and tools are left out.
    """
    messages = request.get("messages") or request.get("input")
    if isinstance(messages, list):
        for message in reversed(messages):
            if isinstance(message, dict) and message.get("role") == "user":
                return source(_joined(message.get("content"), 2 * PROMPT_CHARACTERS), PROMPT_CHARACTERS)
    for name in ("prompt", "input", "query"):
        if text := _joined(request.get(name), 2 * PROMPT_CHARACTERS):
            return source(text, PROMPT_CHARACTERS)
    return ""


def answer_of(heard: bytes) -> str:
    """The beginning of what was answered, in any dialect, streamed or not; of a model that only thought, its thoughts.

    What is cut off, or in no form that is known, says nothing."""
    said, thought = "", ""
    for line in heard.split(b"\n"):
        data = line.removeprefix(b"data: ")
        if not data.startswith(b"{"):
            continue
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            continue
        for text, is_thought in _texts(value):
            if is_thought:
                thought += text if len(thought) < NEEDED else ""
            else:
                said += text
        if len(said) >= NEEDED:
            break
    return source(said or thought, ANSWER_CHARACTERS)


def _texts(said: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """(text, whether it is a thought) of an answer, or of one event of a stream."""
    kind = said.get("type")
    if isinstance(kind, str) and kind != "message":
        if kind.endswith("delta"):
            delta = said.get("delta")
            if isinstance(delta, dict):  # Anthropic
                yield from _plain(delta, "text", "thinking")
            elif isinstance(delta, str) and "arguments" not in kind:  # OpenAI's responses
                yield delta, "reasoning" in kind
        return  # other events repeat what was said
    yield from _plain(said, "response", "thinking")
    if isinstance(text := said.get("text"), str):
        yield text, False
    if isinstance(message := said.get("message"), dict):
        yield from _plain(message, "content", "thinking")
    choices = said.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        yield from _plain(choices[0], "text", "")
        for part in (choices[0].get("delta"), choices[0].get("message")):
            if isinstance(part, dict):
                yield from _plain(part, "content", "reasoning")
    output = said.get("output")
    for item in [said, *(output if isinstance(output, list) else [])]:
        if isinstance(item, dict) and isinstance(item.get("content"), list):
            yield _joined(item["content"], NEEDED), False


def _plain(holder: dict[str, Any], text: str, thought: str) -> Iterator[tuple[str, bool]]:
    if isinstance(value := holder.get(thought), str):
        yield value, True
    if isinstance(value := holder.get(text), str):
        yield value, False


def _joined(content: Any, limit: int) -> str:
    """Texts and parts that have a text, a line each, until there is enough."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    lines: list[str] = []
    size = 0
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str) and text:
            lines.append(text[: limit + 1])
            size += len(lines[-1])
            if size > limit:
                break
    return "\n".join(lines)
