"""LiteLLM as a library, by its provider for Ollama, or with the argument `openai` by that for OpenAI's dialect."""

import gc
import json
import os
import sys
from collections.abc import Callable
from typing import Any

# Not fetched from the internet.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from jobs import ENOUGH, IMAGE_URL, MODELS, QUESTION, QUESTIONS, SCHEMA, TOOL, Answer, answer_jobs, raised

BY_OPENAI = sys.argv[1:] == ["openai"]
litellm.telemetry = False
litellm.suppress_debug_info = True


def where(url: str, key: str, model: str) -> dict[str, Any]:
    if BY_OPENAI:
        return {"model": f"openai/{MODELS[model]}", "api_base": f"{url}/v1", "api_key": key}
    return {"model": f"ollama_chat/{MODELS[model]}", "api_base": url, "api_key": key}


def ask(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def tokens(answer: Any) -> list[int]:
    return [answer.usage.prompt_tokens, answer.usage.completion_tokens]


def chat(url: str, key: str) -> Answer:
    answer = litellm.completion(**where(url, key, "chat"), messages=ask(QUESTION))
    return {"text": answer.choices[0].message.content, "tokens": tokens(answer)}


def stream(url: str, key: str) -> Answer:
    options = {"include_usage": True}
    parts = list(
        litellm.completion(**where(url, key, "chat"), messages=ask(QUESTION), stream=True, stream_options=options)
    )
    texts = [part.choices[0].delta.content for part in parts if part.choices and part.choices[0].delta.content]
    return {"text": "".join(texts), "chunks": len(texts), "tokens": tokens(parts[-1])}


def tools(url: str, key: str) -> Answer:
    messages = ask(QUESTIONS["tool_question"])
    first = litellm.completion(**where(url, key, "tools"), messages=messages, tools=[TOOL]).choices[0].message
    calls = [[call.function.name, json.loads(call.function.arguments)] for call in first.tool_calls]
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": QUESTIONS["tool_result"]}
    messages += [first.model_dump(), result]
    second = litellm.completion(**where(url, key, "tools"), messages=messages, tools=[TOOL])
    return {"calls": calls, "text": second.choices[0].message.content}


def images(url: str, key: str) -> Answer:
    content = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": IMAGE_URL}}]
    answer = litellm.completion(**where(url, key, "vision"), messages=ask(content))
    return {"text": answer.choices[0].message.content}


def thinking(url: str, key: str) -> Answer:
    options = {"reasoning_effort": "high", "allowed_openai_params": ["reasoning_effort"]}
    answer = litellm.completion(**where(url, key, "thinking"), messages=ask(QUESTION), **options)
    message = answer.choices[0].message
    return {"thinking": message.reasoning_content, "text": message.content, "tokens": tokens(answer)}


def structured(url: str, key: str) -> Answer:
    wanted = {"type": "json_schema", "json_schema": {"name": "Weather", "strict": True, "schema": SCHEMA}}
    answer = litellm.completion(**where(url, key, "tools"), messages=ask(QUESTION), response_format=wanted)
    return {"text": answer.choices[0].message.content}


def embeddings(url: str, key: str) -> Answer:
    at = where(url, key, "embedding")
    if not BY_OPENAI:
        # It sends no key with them.
        at |= {"model": f"ollama/{MODELS['embedding']}", "api_base": f"{url}/k/{key}"}
    answer = litellm.embedding(**at, input=QUESTIONS["inputs"])
    return {"vectors": [item["embedding"] for item in answer.data]}


def unknown_model(url: str, key: str) -> Answer:
    return raised(lambda: litellm.completion(**where(url, key, "unknown"), messages=ask(QUESTION)))


def refused(url: str, key: str) -> Answer:
    return raised(lambda: litellm.completion(**where(url, key, "chat"), messages=ask(QUESTION)))


def broken(url: str, key: str) -> Answer:
    return raised(lambda: list(litellm.completion(**where(url, key, "broken"), messages=ask(QUESTION), stream=True)))


def cancel(url: str, key: str) -> Answer:
    parts = litellm.completion(**where(url, key, "endless"), messages=ask(QUESTION), stream=True)
    seen = ""
    while len(seen.split()) < ENOUGH:
        seen += next(parts).choices[0].delta.content or ""
    if BY_OPENAI:
        parts.completion_stream.close()
    # The stream of its other provider has no other end than that of the object.
    del parts
    gc.collect()
    return {"text": seen}


scenarios: dict[str, Callable[[str, str], Answer]] = {
    "chat": chat,
    "stream": stream,
    "tools": tools,
    "images": images,
    "thinking": thinking,
    "structured": structured,
    "embeddings": embeddings,
    "unknown_model": unknown_model,
    "refused": refused,
    "broken": broken,
    "cancel": cancel,
}
answer_jobs(scenarios)
