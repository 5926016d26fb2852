"""Pull, push and create with their progress, and blobs."""

import re
from collections.abc import Iterable
from typing import Any

from proxy.fake_ollama import requests
from proxy.fake_ollama.call import JSON, NDJSON, Call
from proxy.fake_ollama.errors import ApiError, RunnerError, SilentEnd
from proxy.fake_ollama.gojson import encode
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.names import Name

DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
NO_MANIFEST = "pull model manifest: file does not exist"
NO_SOURCE = "neither 'from' or 'files' was specified"
STEPS = 3
PADDING = 250_000


async def pull(call: Call) -> None:
    body = call.bind(requests.PullRequest)
    asked = body.get("model") or body.get("name") or ""
    name = call.name(asked)
    progress: list[dict[str, Any]] = [{"status": "pulling manifest"}]
    if not can_pull(call, name):
        await send(call, body, [*progress, {"error": NO_MANIFEST}])
        return
    model = call.server.library.find(name) or Model(name.display)
    progress.extend(layer("pulling", model))
    progress.extend({"status": text} for text in ("verifying sha256 digest", "writing manifest", "success"))
    call.server.library.add(model)
    await send(call, body, progress)


async def push(call: Call) -> None:
    body = call.bind(requests.PushRequest)
    asked = body.get("model") or body.get("name") or ""
    if not asked:
        raise ApiError(400, "model is required")
    model = call.server.library.find(call.name(asked))
    progress: list[dict[str, Any]] = [{"status": "retrieving manifest"}]
    if model is None:
        await send(call, body, [*progress, {"error": f"couldn't retrieve manifest for {asked}: file does not exist"}])
        return
    progress.extend(layer("pushing", model))
    await send(call, body, [*progress, {"status": "pushing manifest"}, {"status": "success"}])


async def create(call: Call) -> None:
    body = call.bind(requests.CreateRequest)
    name = call.name(body.get("model") or body.get("name") or "")
    source, files = body.get("from") or "", body.get("files") or {}
    if not source and not files:
        raise ApiError(400, NO_SOURCE)
    progress: list[dict[str, Any]] = []
    base = call.server.library.find(call.name(source)) if source else None
    if source and base is None:
        progress.append({"status": "pulling manifest"})
        if not can_pull(call, call.name(source)):
            await send(call, body, [*progress, {"error": NO_MANIFEST}])
            return
        base = Model(call.name(source).display)
        call.server.library.add(base)
    made = Model(name.display, system=body.get("system") or "", remote_host=body.get("remote_host") or "")
    if base:
        made.weights, made.size, made.capabilities = base.weights, base.size, base.capabilities
    else:
        progress.append({"status": "parsing GGUF"})
    call.server.library.add(made)
    for text in (f"using existing layer sha256:{made.weights}", "writing manifest", "success"):
        progress.append({"status": text})
    await send(call, body, progress)


async def upload(call: Call) -> None:
    asked, body = call.parameter, call.request.upload
    assert body is not None
    if call.fault.hang_before_body:
        call.connection.stop_reading()
        try:
            await call.server.gate.wait()
        finally:
            call.connection.go_on_reading()
    # What is left of a body is not waited for: the connection ends with the answer.
    call.answer.keep_alive = call.answer.keep_alive and body.whole.is_set()
    if call.fault.answers_before_body is not None:
        raise ApiError(call.fault.answers_before_body, call.fault.error or "fault")
    if not DIGEST.fullmatch(asked):
        raise ApiError(400, "invalid digest format")
    blobs = call.server.library.blobs
    if asked.replace("-", ":") in blobs:
        await call.reply_empty(200)
        return
    await body.whole.wait()
    call.answer.keep_alive = call.request.keep_alive
    digest = body.digest
    # What was uploaded is kept under its real digest even when it is refused.
    blobs.add(digest)
    if digest != asked.replace("-", ":"):
        raise ApiError(400, f'digest mismatch, expected "{asked}", got "{digest}"')
    await call.reply_empty(201)


async def has_blob(call: Call) -> None:
    if not DIGEST.fullmatch(call.parameter):
        raise ApiError(400, "invalid digest format")
    await call.reply_empty(200 if call.parameter.replace("-", ":") in call.server.library.blobs else 404)


def can_pull(call: Call, name: Name) -> bool:
    return call.server.library.find(name) is not None or name.key in call.server.pullable


def layer(verb: str, model: Model) -> Iterable[dict[str, Any]]:
    for step in range(1, STEPS + 1):
        yield {
            "status": f"{verb} {model.weights[:12]}",
            "digest": f"sha256:{model.weights}",
            "total": model.size,
            "completed": model.size * step // STEPS,
        }


async def send(call: Call, body: dict[str, Any], progress: list[dict[str, Any]]) -> None:
    if body.get("stream") is not False:
        await stream(call, progress)
        return
    last = progress[-1]
    await call.hold_first_byte()
    await call.answer.whole(500 if "error" in last else 200, JSON, encode(last))


async def pad(call: Call) -> None:
    """Megabytes of progress, in long lines."""
    size, number = int(call.fault.progress_mb * 1_000_000), 0
    while size > 0:
        number += 1
        line = encode({"status": f"pulling {number} {'.' * PADDING}"}) + b"\n"
        size -= len(line)
        await call.answer.chunk(line)


async def stream(call: Call, progress: list[dict[str, Any]]) -> None:
    answer = call.answer
    await call.hold_first_byte()
    await answer.begin(NDJSON)
    try:
        for number, item in enumerate(progress):
            await call.step(number)
            await answer.chunk(encode(item) + b"\n")
            if number == 0 and call.fault.progress_mb:
                await pad(call)
    except SilentEnd:
        pass
    except RunnerError as error:
        await answer.chunk(encode({"error": error.text}) + b"\n")
    await answer.end()
