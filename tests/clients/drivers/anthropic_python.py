import anthropic
from jobs import ENOUGH, IMAGE, MODELS, QUESTION, QUESTIONS, Answer, answer_jobs, raised

TOOL = {
    "name": QUESTIONS["tool"]["name"],
    "description": QUESTIONS["tool"]["description"],
    "input_schema": QUESTIONS["tool"]["parameters"],
}


def connect(url: str, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key=key)


def ask(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def tokens(usage: anthropic.types.Usage) -> list[int]:
    return [usage.input_tokens, usage.output_tokens]


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def chat(url: str, key: str) -> Answer:
    answer = connect(url, key).messages.create(model=MODELS["chat"], max_tokens=100, messages=ask(QUESTION))
    return {"text": text_of(answer), "tokens": tokens(answer.usage)}


def stream(url: str, key: str) -> Answer:
    request = {"model": MODELS["chat"], "max_tokens": 100, "messages": ask(QUESTION)}
    with connect(url, key).messages.stream(**request) as events:
        texts = list(events.text_stream)
        message = events.get_final_message()
    return {"text": "".join(texts), "chunks": len(texts), "tokens": tokens(message.usage)}


def tools(url: str, key: str) -> Answer:
    client = connect(url, key)
    request = {"model": MODELS["tools"], "max_tokens": 100, "tools": [TOOL]}
    messages = ask(QUESTIONS["tool_question"])
    first = client.messages.create(messages=messages, **request)
    uses = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": uses[0].id, "content": QUESTIONS["tool_result"]}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    with client.messages.stream(messages=messages, **request) as events:
        text = events.get_final_text()
    return {"calls": [[use.name, use.input] for use in uses], "text": text}


def images(url: str, key: str) -> Answer:
    source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    answer = connect(url, key).messages.create(model=MODELS["vision"], max_tokens=100, messages=ask(content))
    return {"text": text_of(answer)}


def thinking(url: str, key: str) -> Answer:
    answer = connect(url, key).messages.create(
        model=MODELS["thinking"],
        max_tokens=2000,
        messages=ask(QUESTION),
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    thoughts = "".join(block.thinking for block in answer.content if block.type == "thinking")
    return {"thinking": thoughts, "text": text_of(answer), "tokens": tokens(answer.usage)}


def list_models(url: str, key: str) -> Answer:
    return {"models": [model.id for model in connect(url, key).models.list()]}


def show(url: str, key: str) -> Answer:
    return {"id": connect(url, key).models.retrieve(MODELS["tools"]).id}


def unknown_model(url: str, key: str) -> Answer:
    client = connect(url, key)
    return raised(lambda: client.messages.create(model=MODELS["unknown"], max_tokens=100, messages=ask(QUESTION)))


def refused(url: str, key: str) -> Answer:
    client = connect(url, key)
    return raised(lambda: client.messages.create(model=MODELS["chat"], max_tokens=100, messages=ask(QUESTION)))


def broken(url: str, key: str) -> Answer:
    client = connect(url, key)
    request = {"model": MODELS["broken"], "max_tokens": 100, "messages": ask(QUESTION), "stream": True}
    return raised(lambda: list(client.messages.create(**request)))


def cancel(url: str, key: str) -> Answer:
    request = {"model": MODELS["endless"], "max_tokens": 4000, "messages": ask(QUESTION)}
    with connect(url, key).messages.stream(**request) as events:
        seen = [next(events.text_stream) for _ in range(ENOUGH)]
    return {"text": "".join(seen)}


answer_jobs(
    {
        "chat": chat,
        "stream": stream,
        "tools": tools,
        "images": images,
        "thinking": thinking,
        "list": list_models,
        "show": show,
        "unknown_model": unknown_model,
        "refused": refused,
        "broken": broken,
        "cancel": cancel,
    }
)
