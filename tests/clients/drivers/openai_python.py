import json

import openai
from jobs import ENOUGH, IMAGE_URL, MODELS, QUESTION, QUESTIONS, SCHEMA, TOOL, Answer, answer_jobs, raised


def connect(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key)


def ask(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def tokens(usage: openai.types.CompletionUsage) -> list[int]:
    return [usage.prompt_tokens, usage.completion_tokens]


def chat(url: str, key: str) -> Answer:
    answer = connect(url, key).chat.completions.create(model=MODELS["chat"], messages=ask(QUESTION))
    return {"text": answer.choices[0].message.content, "tokens": tokens(answer.usage)}


def stream(url: str, key: str) -> Answer:
    options = {"include_usage": True}
    parts = list(
        connect(url, key).chat.completions.create(
            model=MODELS["chat"], messages=ask(QUESTION), stream=True, stream_options=options
        )
    )
    texts = [part.choices[0].delta.content for part in parts if part.choices and part.choices[0].delta.content]
    return {"text": "".join(texts), "chunks": len(texts), "tokens": tokens(parts[-1].usage)}


def stream_without_usage(url: str, key: str) -> Answer:
    parts = list(connect(url, key).chat.completions.create(model=MODELS["chat"], messages=ask(QUESTION), stream=True))
    texts = [part.choices[0].delta.content or "" for part in parts]
    return {"text": "".join(texts), "usage": [part.usage for part in parts if part.usage]}


def responses(url: str, key: str) -> Answer:
    events = list(connect(url, key).responses.create(model=MODELS["chat"], input=QUESTION, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    usage = events[-1].response.usage
    return {"text": text, "tokens": [usage.input_tokens, usage.output_tokens]}


def completion(url: str, key: str) -> Answer:
    answer = connect(url, key).completions.create(model=MODELS["chat"], prompt=QUESTION)
    return {"text": answer.choices[0].text, "tokens": tokens(answer.usage)}


def tools(url: str, key: str) -> Answer:
    client = connect(url, key)
    messages = ask(QUESTIONS["tool_question"])
    first = client.chat.completions.create(model=MODELS["tools"], messages=messages, tools=[TOOL]).choices[0]
    calls = [[call.function.name, json.loads(call.function.arguments)] for call in first.message.tool_calls]
    result = {"role": "tool", "tool_call_id": first.message.tool_calls[0].id, "content": QUESTIONS["tool_result"]}
    messages += [first.message, result]
    second = client.chat.completions.create(model=MODELS["tools"], messages=messages, tools=[TOOL])
    return {"calls": calls, "text": second.choices[0].message.content}


def images(url: str, key: str) -> Answer:
    content = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": IMAGE_URL}}]
    answer = connect(url, key).chat.completions.create(model=MODELS["vision"], messages=ask(content))
    return {"text": answer.choices[0].message.content}


def thinking(url: str, key: str) -> Answer:
    answer = connect(url, key).chat.completions.create(
        model=MODELS["thinking"], messages=ask(QUESTION), reasoning_effort="high"
    )
    message = answer.choices[0].message
    # Ollama's name for it, which the library keeps among what it does not know.
    return {"thinking": message.model_extra["reasoning"], "text": message.content, "tokens": tokens(answer.usage)}


def structured(url: str, key: str) -> Answer:
    wanted = {"type": "json_schema", "json_schema": {"name": "Weather", "strict": True, "schema": SCHEMA}}
    answer = connect(url, key).chat.completions.create(
        model=MODELS["tools"], messages=ask(QUESTION), response_format=wanted
    )
    return {"text": answer.choices[0].message.content}


def embeddings(url: str, key: str) -> Answer:
    answer = connect(url, key).embeddings.create(model=MODELS["embedding"], input=QUESTIONS["inputs"])
    return {"vectors": [item.embedding for item in answer.data], "tokens": [answer.usage.prompt_tokens, 0]}


def list_models(url: str, key: str) -> Answer:
    return {"models": [model.id for model in connect(url, key).models.list()]}


def show(url: str, key: str) -> Answer:
    return {"id": connect(url, key).models.retrieve(MODELS["tools"]).id}


def unknown_model(url: str, key: str) -> Answer:
    client = connect(url, key)
    return raised(lambda: client.chat.completions.create(model=MODELS["unknown"], messages=ask(QUESTION)))


def refused(url: str, key: str) -> Answer:
    client = connect(url, key)
    return raised(lambda: client.chat.completions.create(model=MODELS["chat"], messages=ask(QUESTION)))


def broken(url: str, key: str) -> Answer:
    client = connect(url, key)
    return raised(
        lambda: list(client.chat.completions.create(model=MODELS["broken"], messages=ask(QUESTION), stream=True))
    )


def cancel(url: str, key: str) -> Answer:
    parts = connect(url, key).chat.completions.create(model=MODELS["endless"], messages=ask(QUESTION), stream=True)
    seen = [next(parts).choices[0].delta.content for _ in range(ENOUGH)]
    parts.close()
    return {"text": "".join(seen)}


answer_jobs(
    {
        "chat": chat,
        "completion": completion,
        "stream": stream,
        "stream_without_usage": stream_without_usage,
        "responses": responses,
        "tools": tools,
        "images": images,
        "thinking": thinking,
        "structured": structured,
        "embeddings": embeddings,
        "list": list_models,
        "show": show,
        "unknown_model": unknown_model,
        "refused": refused,
        "broken": broken,
        "cancel": cancel,
    }
)
