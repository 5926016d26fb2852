"""OpenAI's /v1/responses as Ollama speaks it: without a state (ollama-api §2.8). Pure."""

from collections.abc import Mapping
from typing import Any

from proxy import body
from proxy.body import Schema
from proxy.dialects import openai, web_search, weight
from proxy.dialects.base import Endpoint, Governed, Pin, Request, Usage, go_json
from proxy.dialects.openai import OpenAI
from proxy.errors import BadRequest
from proxy.metering import EventForm

# What the parts of a message may hold; what else there is, Ollama does not look at.
PART = Schema(dict.fromkeys(("type", "text", "image_url", "detail", "file_id", "refusal"), body.text))


def content(name: str, value: Any) -> Any:
    return value if isinstance(value, str) else body.list_of(PART)(name, value)


ITEM = Schema(
    {
        **dict.fromkeys(
            ("type", "role", "id", "call_id", "name", "arguments", "status", "encrypted_content"), body.text
        ),
        "content": content,
        "output": content,
        "summary": body.list_of(PART),
    }
)


def asked(name: str, value: Any) -> Any:
    if value in (None, "", []):
        raise BadRequest('"input" is required: a string or a list of items')
    return value if isinstance(value, str) else body.list_of(ITEM)(name, value)


def tools(name: str, value: Any) -> Any:
    return body.list_of(TOOL)(name, value)


TOOL = Schema(
    {
        **dict.fromkeys(("type", "name", "description"), body.text),
        "strict": body.boolean,
        "parameters": body.obj,
        "tools": tools,  # those of a namespace
    }
)
_FORMAT = Schema({"type": body.text, "name": body.text, "schema": body.obj, "strict": body.boolean})

REQUEST = Schema(
    {
        "model": body.text,
        **dict.fromkeys(openai.OF_OLLAMA, body.anything),
        "input": asked,
        "instructions": body.text,
        "max_output_tokens": body.integer,
        "reasoning": body.nested(openai.REASONING),
        "temperature": body.number,
        "top_p": body.number,
        "text": body.nested(Schema({"format": body.nested(_FORMAT)})),
        "tools": tools,
        "truncation": body.text,
        "include": body.texts,
        "background": body.boolean,
        "stream": body.boolean,
    }
)


def govern(request: Request, pin: Pin) -> Governed:
    if "input" not in request:
        raise BadRequest('"input" is required: a string or a list of items')
    changed = openai.without_native(request)
    web_search.strip(request, pin, changed)
    cap = openai.write_cap(request, "max_output_tokens", request.get("max_output_tokens"), pin, changed)
    return Governed(cap, changed)


def usage(answer: dict[str, Any]) -> Usage:
    """Of a response object, or of the event that holds one."""
    inner = answer.get("response")
    response = inner if isinstance(inner, dict) else answer
    reported = response.get("usage")
    counts = reported if isinstance(reported, dict) else {}
    done = response.get("status") in ("completed", "incomplete")
    return Usage(done, counts.get("input_tokens"), counts.get("output_tokens"), error=response.get("error"))


def generated(answer: dict[str, Any]) -> int:
    """Bytes of what was generated in an answer in one piece."""
    size = 0
    for item in openai.objects(answer.get("output")):
        parts = [*openai.objects(item.get("content")), *openai.objects(item.get("summary"))]
        texts = [item.get("arguments"), *(part.get("text") for part in parts)]
        size += sum(len(text.encode()) for text in texts if isinstance(text, str))
    return size


EVENTS = EventForm(
    token=b".delta\n",
    reporting=(b"event: response.completed\n", b"event: response.incomplete\n"),
    last=(b"event: response.completed\n", b"event: response.incomplete\n"),
    usage=usage,
)


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/responses": Endpoint(
        schema=REQUEST,
        govern=govern,
        weigh=weight.weigh,
        meter=openai.meter_of(EVENTS, generated),
        wants_stream=openai.wants_stream,
        end_user=openai.end_user,
        takes_zstd=True,
    )
}


class Responses(OpenAI):
    def stream_error(self, status: int, code: str, message: str, request_id: str) -> bytes:
        # The event that the API has for it; its SDKs raise on the member `error` of any event.
        error = self._described(status, code, message)
        said = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0, "error": error}
        return b"event: error\ndata: " + go_json(said) + b"\n\n"
