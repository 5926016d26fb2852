import ollama
from jobs import ENOUGH, IMAGE, MODELS, QUESTION, QUESTIONS, SCHEMA, TOOL, Answer, answer_jobs, raised


def connect(url: str, key: str) -> ollama.Client:
    return ollama.Client(host=url, headers={"Authorization": f"Bearer {key}"})


def ask(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def tokens(answer: ollama.ChatResponse) -> list[int]:
    return [answer.prompt_eval_count, answer.eval_count]


def chat(url: str, key: str) -> Answer:
    answer = connect(url, key).chat(MODELS["chat"], ask(QUESTION))
    return {"text": answer.message.content, "tokens": tokens(answer)}


def stream(url: str, key: str) -> Answer:
    parts = list(connect(url, key).chat(MODELS["chat"], ask(QUESTION), stream=True))
    text = "".join(part.message.content for part in parts)
    return {"text": text, "chunks": len(parts) - 1, "tokens": tokens(parts[-1])}


def tools(url: str, key: str) -> Answer:
    client = connect(url, key)
    messages = ask(QUESTIONS["tool_question"])
    first = client.chat(MODELS["tools"], messages, tools=[TOOL])
    calls = [[call.function.name, dict(call.function.arguments)] for call in first.message.tool_calls]
    messages += [first.message, {"role": "tool", "tool_name": "get_time", "content": QUESTIONS["tool_result"]}]
    parts = list(client.chat(MODELS["tools"], messages, tools=[TOOL], stream=True))
    return {"calls": calls, "text": "".join(part.message.content for part in parts)}


def images(url: str, key: str) -> Answer:
    messages = [{"role": "user", "content": QUESTION, "images": [IMAGE]}]
    return {"text": connect(url, key).chat(MODELS["vision"], messages).message.content}


def thinking(url: str, key: str) -> Answer:
    parts = list(connect(url, key).chat(MODELS["thinking"], ask(QUESTION), think=True, stream=True))
    return {
        "thinking": "".join(part.message.thinking or "" for part in parts),
        "text": "".join(part.message.content or "" for part in parts),
        "tokens": tokens(parts[-1]),
    }


def structured(url: str, key: str) -> Answer:
    answer = connect(url, key).chat(MODELS["tools"], ask(QUESTION), format=SCHEMA)
    return {"text": answer.message.content}


def embeddings(url: str, key: str) -> Answer:
    answer = connect(url, key).embed(MODELS["embedding"], QUESTIONS["inputs"])
    return {"vectors": [list(vector) for vector in answer.embeddings], "tokens": [answer.prompt_eval_count, 0]}


def list_models(url: str, key: str) -> Answer:
    return {"models": [model.model for model in connect(url, key).list().models]}


def show(url: str, key: str) -> Answer:
    answer = connect(url, key).show(MODELS["tools"])
    return {"capabilities": answer.capabilities, "family": answer.details.family}


def pull(url: str, key: str) -> Answer:
    return {"statuses": [step.status for step in connect(url, key).pull(MODELS["pull"], stream=True)]}


def unknown_model(url: str, key: str) -> Answer:
    return raised(lambda: connect(url, key).chat(MODELS["unknown"], ask(QUESTION)))


def refused(url: str, key: str) -> Answer:
    return raised(lambda: connect(url, key).chat(MODELS["chat"], ask(QUESTION)))


def broken(url: str, key: str) -> Answer:
    return raised(lambda: list(connect(url, key).chat(MODELS["broken"], ask(QUESTION), stream=True)))


def cancel(url: str, key: str) -> Answer:
    parts = connect(url, key).chat(MODELS["endless"], ask(QUESTION), stream=True)
    seen = [next(parts).message.content for _ in range(ENOUGH)]
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
        "list": list_models,
        "show": show,
        "pull": pull,
        "unknown_model": unknown_model,
        "refused": refused,
        "broken": broken,
        "cancel": cancel,
    }
)
