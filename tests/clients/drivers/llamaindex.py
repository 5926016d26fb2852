import json

from jobs import ENOUGH, IMAGE, MODELS, QUESTION, QUESTIONS, Answer, answer_jobs, raised
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.llms.ollama import Ollama
from pydantic import BaseModel


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


def get_time(city: str) -> str:
    """The time in a city."""
    return QUESTIONS["tool_result"]


def connect(url: str, key: str, model: str, **options: object) -> Ollama:
    options = {"context_window": 4096, "request_timeout": 120, **options}
    return Ollama(model=model, base_url=url, headers={"Authorization": f"Bearer {key}"}, **options)


def ask(content: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=content)]


def tokens(answer: ChatResponse) -> list[int]:
    return [answer.raw["prompt_eval_count"], answer.raw["eval_count"]]


def chat(url: str, key: str) -> Answer:
    answer = connect(url, key, MODELS["chat"]).chat(ask(QUESTION))
    return {"text": answer.message.content, "tokens": tokens(answer)}


def stream(url: str, key: str) -> Answer:
    parts = list(connect(url, key, MODELS["chat"]).stream_chat(ask(QUESTION)))
    return {
        "text": "".join(part.delta for part in parts),
        "chunks": sum(bool(part.delta) for part in parts),
        "tokens": tokens(parts[-1]),
    }


def tools(url: str, key: str) -> Answer:
    llm = connect(url, key, MODELS["tools"])
    tool = FunctionTool.from_defaults(get_time)
    messages = ask(QUESTIONS["tool_question"])
    first = llm.chat_with_tools([tool], chat_history=messages)
    calls = [[call.tool_name, call.tool_kwargs] for call in llm.get_tool_calls_from_response(first)]
    result = ChatMessage(role="tool", content=QUESTIONS["tool_result"], additional_kwargs={"tool_name": "get_time"})
    second = llm.chat_with_tools([tool], chat_history=[*messages, first.message, result])
    return {"calls": calls, "text": second.message.content}


def images(url: str, key: str) -> Answer:
    blocks = [TextBlock(text=QUESTION), ImageBlock(image=IMAGE.encode(), image_mimetype="image/png")]
    answer = connect(url, key, MODELS["vision"]).chat([ChatMessage(role="user", blocks=blocks)])
    return {"text": answer.message.content}


def thinking(url: str, key: str) -> Answer:
    answer = connect(url, key, MODELS["thinking"], thinking=True).chat(ask(QUESTION))
    thoughts = "".join(block.content for block in answer.message.blocks if block.block_type == "thinking")
    return {"thinking": thoughts, "text": answer.message.content, "tokens": tokens(answer)}


def structured(url: str, key: str) -> Answer:
    answer = connect(url, key, MODELS["tools"]).as_structured_llm(Weather).chat(ask(QUESTION))
    return {"text": json.dumps(answer.raw.model_dump())}


def embeddings(url: str, key: str) -> Answer:
    headers = {"headers": {"Authorization": f"Bearer {key}"}}
    embedder = OllamaEmbedding(model_name=MODELS["embedding"], base_url=url, client_kwargs=headers)
    return {"vectors": embedder.get_text_embedding_batch(QUESTIONS["inputs"])}


def show(url: str, key: str) -> Answer:
    """It asks how long a context the model was trained for where the program does not say."""
    return {"context_length": connect(url, key, MODELS["tools"], context_window=-1).metadata.context_window}


def whole_context(url: str, key: str) -> Answer:
    """Without `context_window` each call asks for all that the model was trained for."""
    return raised(lambda: connect(url, key, MODELS["chat"], context_window=-1).chat(ask(QUESTION)))


def unknown_model(url: str, key: str) -> Answer:
    return raised(lambda: connect(url, key, MODELS["unknown"]).chat(ask(QUESTION)))


def refused(url: str, key: str) -> Answer:
    return raised(lambda: connect(url, key, MODELS["chat"]).chat(ask(QUESTION)))


def broken(url: str, key: str) -> Answer:
    return raised(lambda: list(connect(url, key, MODELS["broken"]).stream_chat(ask(QUESTION))))


def cancel(url: str, key: str) -> Answer:
    parts = connect(url, key, MODELS["endless"]).stream_chat(ask(QUESTION))
    seen = [next(parts).delta for _ in range(ENOUGH)]
    parts.close()
    return {"text": "".join(seen)}


answer_jobs(
    {
        "chat": chat,
        "stream": stream,
        "tools": tools,
        "images": images,
        "thinking": thinking,
        "structured": structured,
        "embeddings": embeddings,
        "show": show,
        "whole_context": whole_context,
        "unknown_model": unknown_model,
        "refused": refused,
        "broken": broken,
        "cancel": cancel,
    }
)
