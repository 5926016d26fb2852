"""What the server has: its version, its models, what is loaded."""

from typing import Any

from proxy.fake_ollama import requests
from proxy.fake_ollama.call import SIGN_IN, Call
from proxy.fake_ollama.clock import local_time
from proxy.fake_ollama.errors import ApiError
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.names import InvalidName, Name, parse_name
from proxy.fake_ollama.scheduler import Runner

TEMPLATE = "{{- range .Messages }}<|{{ .Role }}|>{{ .Content }}{{- end }}"


async def root(call: Call) -> None:
    await call.reply_text(200, "Ollama is running", "text/plain; charset=utf-8")


async def version(call: Call) -> None:
    await call.reply({"version": call.fault.version or call.server.version})


async def status(call: Call) -> None:
    await call.reply({"cloud": {"disabled": False, "source": "none"}})


async def tags(call: Call) -> None:
    await call.reply({"models": [listing(model) for model in call.server.library.newest_first()]})


async def ps(call: Call) -> None:
    omitted = {name.lower() for name in call.fault.ps_omits or ()}
    scheduler = call.server.scheduler
    models = [loaded(runner) for runner in scheduler.listed() if runner.model.name.lower() not in omitted]
    if call.fault.ps_lists_loading and scheduler.loading:
        models.insert(0, identity(scheduler.loading) | {"expires_at": "0001-01-01T00:00:00Z", "size_vram": 0})
    await call.reply({"models": models})


async def show(call: Call) -> None:
    body = call.bind(requests.ShowRequest)
    asked = body.get("model") or body.get("name") or ""
    if not asked:
        raise ApiError(400, "model is required")
    model = call.server.library.find(call.name(asked))
    if model is None or call.fault.lacks_model:
        raise ApiError(404, f"model '{call.name(asked).display}' not found")
    agent = call.request.header(b"user-agent") or b""
    await call.reply(description(model, body, asked if agent.startswith(b"GitHubCopilotChat/") else None))


async def copy(call: Call) -> None:
    body = call.bind(requests.CopyRequest)
    source = named(body.get("source") or "", "source ")
    destination = named(body.get("destination") or "", "destination ")
    model = call.server.library.find(source)
    if model is None:
        raise ApiError(404, f'model "{body["source"]}" not found')
    call.server.library.copy(model, destination)
    await call.reply_empty()


async def delete(call: Call) -> None:
    body = call.bind(requests.DeleteRequest)
    asked = body.get("model") or body.get("name") or ""
    name = named(asked, "name ")
    if call.server.library.remove(name) is None:
        raise ApiError(404, f"model '{asked}' not found")
    await call.reply_empty()


async def me(call: Call) -> None:
    raise ApiError(401, "unauthorized", extra={"signin_url": SIGN_IN})


async def needs_account(call: Call) -> None:
    raise ApiError(401, "unauthorized", extra={"signin_url": SIGN_IN})


async def signout(call: Call) -> None:
    raise ApiError(401, "you are not currently signed in")


async def recommendations(call: Call) -> None:
    names = [
        {"model": model.name, "description": "Installed here", "context_length": model.context_length}
        for model in call.server.library.newest_first()
    ]
    await call.reply({"recommendations": names})


def named(text: str, what: str) -> Name:
    try:
        return parse_name(text)
    except InvalidName as error:
        raise ApiError(400, f'{what}"{text}" is invalid') from error


def identity(model: Model) -> dict[str, Any]:
    return {"name": model.name, "model": model.name}


def listing(model: Model) -> dict[str, Any]:
    remote = {"remote_model": model.name, "remote_host": model.remote_host} if model.remote_host else {}
    lengths = {"context_length": model.context_length, "embedding_length": model.embedding_length}
    return {
        **identity(model),
        **remote,
        "modified_at": local_time(model.modified_at),
        "size": model.size,
        "digest": model.digest,
        "details": {**model.details, **lengths},
        "capabilities": list(model.capabilities),
    }


def loaded(runner: Runner) -> dict[str, Any]:
    model = runner.model
    return {
        **identity(model),
        "size": runner.size,
        "digest": model.digest,
        "details": model.details,
        "expires_at": local_time(runner.expiry()),
        "size_vram": runner.size_vram,
        "context_length": runner.context,
    }


def description(model: Model, body: dict[str, Any], basename: str | None) -> dict[str, Any]:
    family = model.family
    info = {
        "general.architecture": family,
        "general.parameter_count": round(model.size * 1.59),
        f"{family}.context_length": model.context_length,
        f"{family}.embedding_length": model.embedding_length,
        "tokenizer.ggml.tokens": ["<s>", "</s>"] if body.get("verbose") else [],
    }
    if basename:
        info["general.basename"] = basename
    system = {"system": body.get("system") or model.system}
    return {
        "license": "A licence",
        "modelfile": f'# Modelfile generated by "ollama show"\nFROM /models/blobs/sha256-{model.weights}\n',
        "parameters": f'{"stop":<30} "<|eot_id|>"',
        "template": TEMPLATE,
        **(system if system["system"] else {}),
        "details": model.details,
        "model_info": dict(sorted(info.items())),
        "capabilities": list(model.capabilities),
        "modified_at": local_time(model.modified_at),
    }
