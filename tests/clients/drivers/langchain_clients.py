"""LangChain's `ChatOllama`, or with the argument `openai` its `ChatOpenAI`; embeddings by the class beside each."""

import json
import sys
from collections.abc import Callable
from typing import Any

from jobs import ENOUGH, IMAGE_URL, MODELS, QUESTION, QUESTIONS, SCHEMA, TOOL, Answer, answer_jobs, raised
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

BY_OPENAI = sys.argv[1:] == ["openai"]


def connect(url: str, key: str, model: str, **options: Any) -> ChatOllama | ChatOpenAI:
    if BY_OPENAI:
        return ChatOpenAI(model=model, base_url=f"{url}/v1", api_key=key, **options)
    headers = {"headers": {"Authorization": f"Bearer {key}"}}
    return ChatOllama(model=model, base_url=url, client_kwargs=headers, **options)


def tokens(message: AIMessage) -> list[int]:
    usage = message.usage_metadata
    return [usage["input_tokens"], usage["output_tokens"]]


def chat(url: str, key: str) -> Answer:
    answer = connect(url, key, MODELS["chat"]).invoke(QUESTION)
    return {"text": answer.content, "tokens": tokens(answer)}


def joined(parts: list[AIMessageChunk]) -> AIMessageChunk:
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    return whole


def stream(url: str, key: str) -> Answer:
    options = {"stream_usage": True} if BY_OPENAI else {}
    parts = list(connect(url, key, MODELS["chat"], **options).stream(QUESTION))
    return {
        "text": "".join(part.content for part in parts),
        "chunks": sum(bool(part.content) for part in parts),
        "tokens": tokens(joined(parts)),
    }


def tools(url: str, key: str) -> Answer:
    llm = connect(url, key, MODELS["tools"]).bind_tools([TOOL])
    messages = [HumanMessage(QUESTIONS["tool_question"])]
    first = llm.invoke(messages)
    calls = [[call["name"], call["args"]] for call in first.tool_calls]
    messages += [first, ToolMessage(QUESTIONS["tool_result"], tool_call_id=first.tool_calls[0]["id"])]
    return {"calls": calls, "text": llm.invoke(messages).content}


def images(url: str, key: str) -> Answer:
    content = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": IMAGE_URL}}]
    return {"text": connect(url, key, MODELS["vision"]).invoke([HumanMessage(content)]).content}


def thinking(url: str, key: str) -> Answer:
    answer = connect(url, key, MODELS["thinking"], reasoning=True).invoke(QUESTION)
    thoughts = answer.additional_kwargs["reasoning_content"]
    return {"thinking": thoughts, "text": answer.content, "tokens": tokens(answer)}


def structured(url: str, key: str) -> Answer:
    llm = connect(url, key, MODELS["tools"])
    value = llm.with_structured_output(SCHEMA, method="json_schema").invoke(QUESTION)
    return {"text": json.dumps(value)}


def embeddings(url: str, key: str) -> Answer:
    if BY_OPENAI:
        # Texts, not token numbers, which Ollama does not take.
        embedder: Any = OpenAIEmbeddings(
            model=MODELS["embedding"], base_url=f"{url}/v1", api_key=key, check_embedding_ctx_length=False
        )
    else:
        headers = {"headers": {"Authorization": f"Bearer {key}"}}
        embedder = OllamaEmbeddings(model=MODELS["embedding"], base_url=url, client_kwargs=headers)
    return {"vectors": embedder.embed_documents(QUESTIONS["inputs"])}


def list_models(url: str, key: str) -> Answer:
    """Asked for by `validate_model_on_init`; a model that is not there is refused."""
    connect(url, key, MODELS["tools"], validate_model_on_init=True)
    return {"refused": raised(lambda: connect(url, key, MODELS["unknown"], validate_model_on_init=True))["class"]}


def unknown_model(url: str, key: str) -> Answer:
    return raised(lambda: connect(url, key, MODELS["unknown"]).invoke(QUESTION))


def refused(url: str, key: str) -> Answer:
    return raised(lambda: connect(url, key, MODELS["chat"]).invoke(QUESTION))


def broken(url: str, key: str) -> Answer:
    return raised(lambda: list(connect(url, key, MODELS["broken"]).stream(QUESTION)))


def cancel(url: str, key: str) -> Answer:
    parts = connect(url, key, MODELS["endless"]).stream(QUESTION)
    seen = ""
    while len(seen.split()) < ENOUGH:
        seen += next(parts).content
    parts.close()
    return {"text": seen}


scenarios: dict[str, Callable[[str, str], Answer]] = {
    "chat": chat,
    "stream": stream,
    "tools": tools,
    "images": images,
    "structured": structured,
    "embeddings": embeddings,
    "unknown_model": unknown_model,
    "refused": refused,
    "broken": broken,
    "cancel": cancel,
}
if not BY_OPENAI:
    scenarios |= {"thinking": thinking, "list": list_models}
answer_jobs(scenarios)
