"""Tools that are no libraries, as the requests they make, in the order and with the headers they make them.

Each scenario answers as the drivers do. `Refused` stands for what such a tool shows of an error.
"""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.clients.drivers.jobs import ENOUGH, IMAGE, IMAGE_URL, MODELS, QUESTION, QUESTIONS, SCHEMA, TOOL, Answer

PATIENCE = 120  # seconds
TLS = ssl.create_default_context()  # made once: that takes longer than a call
Scenario = Callable[[str, str], Awaitable[Answer]]
Body = dict[str, Any]


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HeadRefused(Refused):
    """An answer to HEAD has no body to tell why."""


class Tool:
    """One tool at a gateway. Subclasses say what it sends."""

    headers: Mapping[str, str] = {}

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key

    @property
    def authorization(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"Accept": "*/*", **self.headers, **self.authorization}
        async with httpx.AsyncClient(headers=headers, timeout=PATIENCE, trust_env=False, verify=TLS) as client:
            yield client

    async def request(self, method: str, path: str, body: Body | None = None) -> Any:
        """The JSON of an answer in one piece; raises Refused."""
        async with self.connection() as client:
            answer = await client.request(method, self.url + path, json=body)
            check(answer, answer.content)
            return answer.json() if answer.content else None

    async def lines(self, path: str, body: Body) -> AsyncIterator[Body]:
        """The objects of a stream of lines or of events; raises Refused, also in midstream."""
        async with self.connection() as client, client.stream("POST", self.url + path, json=body) as answer:
            if answer.status_code >= 400:
                check(answer, await answer.aread())
            rest = b""
            async for chunk in answer.aiter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    said = line.removeprefix(b"data: ")
                    if said.startswith(b"{"):
                        item = json.loads(said)
                        if item.get("error"):
                            raise Refused(answer.status_code, message_of(item))
                        yield item


def check(answer: httpx.Response, content: bytes) -> None:
    if answer.status_code < 400:
        return
    if answer.request.method == "HEAD":
        raise HeadRefused(answer.status_code, "")
    raise Refused(answer.status_code, message_of(json.loads(content)))


def message_of(item: Body) -> str:
    error = item["error"]
    return error["message"] if isinstance(error, dict) else error


async def taken(parts: AsyncIterator[Body], text_of: Callable[[Body], str]) -> Answer:
    """The client leaves after a few chunks of text."""
    seen: list[str] = []
    async for part in parts:
        if text := text_of(part):
            seen.append(text)
        if len(seen) == ENOUGH:
            break
    await parts.aclose()  # type: ignore[attr-defined]
    return {"text": "".join(seen)}


class OllamaTool(Tool):
    """What tools that speak Ollama's dialect have in common; `extra` goes with each chat."""

    extra: Body = {}

    def body(self, model: str, content: str = QUESTION, **fields: Any) -> Body:
        return {"model": MODELS[model], "messages": [{"role": "user", "content": content}], **self.extra, **fields}

    async def told(self, body: Body) -> Answer:
        return told([part async for part in self.lines("/api/chat", body)])

    async def chat(self) -> Answer:
        return told([await self.request("POST", "/api/chat", self.body("chat", stream=False))])

    async def stream(self) -> Answer:
        return await self.told(self.body("chat", stream=True))

    async def tools(self) -> Answer:
        body = self.body("tools", QUESTIONS["tool_question"], stream=True, tools=[TOOL])
        parts = [part["message"] async for part in self.lines("/api/chat", body)]
        calls = [call for message in parts for call in message.get("tool_calls", ())]
        body["messages"] += [
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": QUESTIONS["tool_result"], "tool_call_id": calls[0]["id"]},
        ]
        second = await self.told(body)
        return {"calls": [[call["function"]["name"], call["function"]["arguments"]] for call in calls], **second}

    async def images(self) -> Answer:
        body = self.body("vision", stream=True)
        body["messages"][0]["images"] = [IMAGE]
        return await self.told(body)

    async def thinking(self) -> Answer:
        return await self.told(self.body("thinking", stream=True, think=True))

    async def structured(self) -> Answer:
        return await self.told(self.body("tools", stream=True, format=SCHEMA))

    async def embeddings(self) -> Answer:
        body = {"model": MODELS["embedding"], "input": QUESTIONS["inputs"]}
        answer = await self.request("POST", "/api/embed", body)
        return {"vectors": answer["embeddings"], "tokens": [answer["prompt_eval_count"], 0]}

    async def list(self) -> Answer:
        return {"models": [model["name"] for model in (await self.request("GET", "/api/tags"))["models"]]}

    async def show(self) -> Answer:
        answer = await self.request("POST", "/api/show", {"model": MODELS["tools"]})
        return {"capabilities": answer["capabilities"], "family": answer["details"]["family"]}

    async def pull(self) -> Answer:
        body = {"model": MODELS["pull"], "stream": True}
        return {"statuses": [step["status"] async for step in self.lines("/api/pull", body)]}

    async def unknown_model(self) -> Answer:
        return await self.told(self.body("unknown", stream=True))

    async def refused(self) -> Answer:
        return await self.told(self.body("chat", stream=True))

    async def broken(self) -> Answer:
        return await self.told(self.body("broken", stream=True))

    async def cancel(self) -> Answer:
        parts = self.lines("/api/chat", self.body("endless", stream=True))
        return await taken(parts, lambda part: part["message"]["content"])


def told(parts: list[Body]) -> Answer:
    """The text, the thoughts and the tokens of a chat in Ollama's dialect."""
    last = parts[-1]
    assert last["done"], last
    return {
        "text": "".join(part["message"]["content"] for part in parts),
        "thinking": "".join(part["message"].get("thinking", "") for part in parts),
        "chunks": sum(bool(part["message"]["content"]) for part in parts),
        "tokens": [last["prompt_eval_count"], last["eval_count"]],
    }


class OpenWebUI(OllamaTool):
    headers = {
        "User-Agent": "Python/3.11 aiohttp/3.12",
        "Content-Type": "application/json",
        "X-OpenWebUI-User-Name": "Alice",
        "X-OpenWebUI-User-Id": "3f1c",
        "X-OpenWebUI-User-Email": "alice@acme.example",
        "X-OpenWebUI-User-Role": "user",
    }
    extra = {"options": {}}

    async def list(self) -> Answer:
        version = (await self.request("GET", "/api/version"))["version"]
        assert [int(part) for part in version.split("-")[0].split(".")], version
        answer = await super().list()
        loaded = (await self.request("GET", "/api/ps"))["models"]
        assert all(model["name"] and model["expires_at"] for model in loaded)
        # Unloading, from its page of models.
        body = {"model": MODELS["tools"], "keep_alive": 0, "prompt": ""}
        unloaded = [part async for part in self.lines("/api/generate", {**body, "stream": True})]
        return answer if not unloaded else {**answer, "unloaded": unloaded[-1].get("done_reason")}


class Continue(OllamaTool):
    headers = {"User-Agent": "node-fetch", "Content-Type": "application/json"}
    extra = {"options": {"num_ctx": 4096, "num_predict": 2048}, "keep_alive": 1800}

    async def show(self) -> Answer:
        answer = await self.request("POST", "/api/show", {"name": MODELS["tools"]})
        return {"capabilities": answer["capabilities"], "family": answer["details"]["family"]}

    async def chat(self) -> Answer:
        """Completion while one types: raw, in the middle of a file."""
        body = {"model": MODELS["chat"], "prompt": QUESTION, "raw": True, **self.extra, "stream": True}
        parts = [part async for part in self.lines("/api/generate", body)]
        return {
            "text": "".join(part["response"] for part in parts),
            "tokens": [parts[-1]["prompt_eval_count"], parts[-1]["eval_count"]],
        }


class OllamaCommand(OllamaTool):
    """`OLLAMA_HOST=http://gateway/k/KEY ollama …`; `stream` is left out where it is true."""

    headers = {"User-Agent": "ollama/0.33.0 (amd64 linux) Go/go1.26.0", "Accept": "application/x-ndjson"}
    extra = {"options": {}}

    def __init__(self, url: str, key: str) -> None:
        super().__init__(f"{url}/k/{key}", key)

    @property
    def authorization(self) -> Mapping[str, str]:
        return {}

    async def told(self, body: Body) -> Answer:
        """`ollama run`: is anybody there, what is the model, load it, ask."""
        await self.request("HEAD", "/")
        try:
            await self.request("POST", "/api/show", {"model": body["model"]})
        except Refused as refused:
            # It offers to pull what is not there.
            if refused.status != 404:
                raise
        await self.request("POST", "/api/generate", {"model": body["model"]})
        body.pop("stream", None)
        return await super().told(body)

    async def chat(self) -> Answer:
        """`ollama run MODEL PROMPT`, and `ollama stop MODEL`."""
        answer = await self.told(self.body("chat"))
        body = {"model": MODELS["chat"], "prompt": "", "keep_alive": 0}
        stopped = await self.request("POST", "/api/generate", body)
        assert stopped["done_reason"] == "unload", stopped
        return answer

    async def list(self) -> Answer:
        await self.request("HEAD", "/")
        answer = await super().list()
        await self.request("GET", "/api/ps")
        return answer

    async def pull(self) -> Answer:
        await self.request("HEAD", "/")
        body = {"model": MODELS["pull"], "name": "", "insecure": False}
        return {"statuses": [step["status"] async for step in self.lines("/api/pull", {"model": body["model"]})]}


class ClaudeCode(Tool):
    headers = {
        "User-Agent": "claude-cli/2.1.0 (external, cli)",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "anthropic-dangerous-direct-browser-access": "true",
        "x-app": "cli",
        "x-stainless-lang": "js",
        "x-stainless-retry-count": "0",
    }
    path = "/v1/messages?beta=true"

    def body(self, model: str, content: Any = QUESTION, **fields: Any) -> Body:
        cached = {"cache_control": {"type": "ephemeral"}}
        return {
            "model": MODELS[model],
            "max_tokens": 4000,
            "temperature": 1,
            "system": [{"type": "text", "text": "You are a careful programmer.", **cached}],
            "messages": [{"role": "user", "content": content}],
            "tools": [
                {
                    "name": QUESTIONS["tool"]["name"],
                    "description": QUESTIONS["tool"]["description"],
                    "input_schema": QUESTIONS["tool"]["parameters"],
                }
            ],
            "metadata": {"user_id": "user_1_account__session_2"},
            "stream": True,
            **fields,
        }

    async def told(self, body: Body) -> Answer:
        events = [event async for event in self.lines(self.path, body)]
        assert events[-1]["type"] == "message_stop", events[-1]
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
        (usage,) = [event["usage"] for event in events if event["type"] == "message_delta"]
        texts = [delta["text"] for delta in deltas if delta["type"] == "text_delta"]
        return {
            "text": "".join(texts),
            "chunks": len(texts),
            "thinking": "".join(delta["thinking"] for delta in deltas if delta["type"] == "thinking_delta"),
            "blocks": blocks,
            "arguments": "".join(delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"),
            "tokens": [usage["input_tokens"], usage["output_tokens"]],
        }

    async def stream(self) -> Answer:
        return await self.told(self.body("chat"))

    async def tools(self) -> Answer:
        body = self.body("tools", QUESTIONS["tool_question"])
        first = await self.told(body)
        (use,) = first["blocks"]
        arguments = json.loads(first["arguments"])
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": QUESTIONS["tool_result"]}
        body["messages"] += [
            {"role": "assistant", "content": [{**use, "input": arguments}]},
            {"role": "user", "content": [result]},
        ]
        return {"calls": [[use["name"], arguments]], "text": (await self.told(body))["text"]}

    async def images(self) -> Answer:
        source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
        content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
        return await self.told(self.body("vision", content))

    async def thinking(self) -> Answer:
        return await self.told(self.body("thinking", thinking={"type": "enabled", "budget_tokens": 2000}))

    async def list(self) -> Answer:
        return {"models": [model["id"] for model in (await self.request("GET", "/v1/models"))["data"]]}

    async def unknown_model(self) -> Answer:
        return await self.told(self.body("unknown"))

    async def refused(self) -> Answer:
        return await self.told(self.body("chat"))

    async def broken(self) -> Answer:
        return await self.told(self.body("broken"))

    async def count_tokens(self) -> Answer:
        body = self.body("chat")
        counted = {name: body[name] for name in ("model", "system", "messages", "tools")}
        return await self.request("POST", "/v1/messages/count_tokens?beta=true", counted)

    async def cancel(self) -> Answer:
        parts = self.lines(self.path, self.body("endless"))
        return await taken(parts, lambda event: event.get("delta", {}).get("text", ""))


class Codex(Tool):
    headers = {"User-Agent": "codex_cli_rs/0.80.0 (Linux; x86_64)", "originator": "codex_cli_rs", "session_id": "1"}

    def body(self, model: str, content: list[Body] | None = None, **fields: Any) -> Body:
        given = content or [{"type": "input_text", "text": QUESTION}]
        tool = {"type": "function", "strict": False, **QUESTIONS["tool"]}
        return {
            "model": MODELS[model],
            "instructions": "You are a careful programmer.",
            "input": [{"type": "message", "role": "user", "content": given}],
            "tools": [tool],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "store": False,
            "stream": True,
            "include": [],
            "prompt_cache_key": "1",
            **fields,
        }

    async def told(self, body: Body) -> Answer:
        events = [event async for event in self.lines("/v1/responses", body)]
        last = events[-1]
        assert last["type"] == "response.completed", last
        kinds = {"response.output_text.delta": [], "response.reasoning_summary_text.delta": []}
        for event in events:
            if event["type"] in kinds:
                kinds[event["type"]].append(event["delta"])
        texts, thoughts = kinds.values()
        usage = last["response"]["usage"]
        return {
            "text": "".join(texts),
            "chunks": len(texts),
            "thinking": "".join(thoughts),
            "items": last["response"]["output"],
            "tokens": [usage["input_tokens"], usage["output_tokens"]],
        }

    async def stream(self) -> Answer:
        return await self.told(self.body("chat"))

    async def tools(self) -> Answer:
        body = self.body("tools", [{"type": "input_text", "text": QUESTIONS["tool_question"]}])
        (use,) = [item for item in (await self.told(body))["items"] if item["type"] == "function_call"]
        result = {"type": "function_call_output", "call_id": use["call_id"], "output": QUESTIONS["tool_result"]}
        body["input"] += [use, result]
        return {"calls": [[use["name"], json.loads(use["arguments"])]], "text": (await self.told(body))["text"]}

    async def images(self) -> Answer:
        image = {"type": "input_image", "image_url": IMAGE_URL}
        return await self.told(self.body("vision", [{"type": "input_text", "text": QUESTION}, image]))

    async def thinking(self) -> Answer:
        return await self.told(self.body("thinking", reasoning={"effort": "medium", "summary": "auto"}))

    async def structured(self) -> Answer:
        wanted = {"type": "json_schema", "strict": True, "name": "codex_output_schema", "schema": SCHEMA}
        return await self.told(self.body("tools", text={"format": wanted}))

    async def list(self) -> Answer:
        return {"models": [model["id"] for model in (await self.request("GET", "/v1/models"))["data"]]}

    async def pull(self) -> Answer:
        """`codex --oss` pulls the model that it needs."""
        body = {"model": MODELS["pull"], "stream": True}
        return {"statuses": [step["status"] async for step in self.lines("/api/pull", body)]}

    async def unknown_model(self) -> Answer:
        return await self.told(self.body("unknown"))

    async def refused(self) -> Answer:
        return await self.told(self.body("chat"))

    async def broken(self) -> Answer:
        return await self.told(self.body("broken"))

    async def cancel(self) -> Answer:
        parts = self.lines("/v1/responses", self.body("endless"))
        return await taken(parts, lambda event: event["delta"] if event["type"].endswith("text.delta") else "")


TOOLS: Mapping[str, type[Tool]] = {
    "Open WebUI": OpenWebUI,
    "Continue": Continue,
    "Claude Code": ClaudeCode,
    "Codex CLI": Codex,
    "`ollama` CLI": OllamaCommand,
}


async def ask(name: str, scenario: str, url: str, key: str) -> Answer:
    tool = TOOLS[name](url, key)
    try:
        return await getattr(tool, scenario)()
    except Refused as refused:
        return {"class": type(refused).__name__, "status": refused.status, "message": str(refused)}
