"""/api/embed, its legacy twin, and /v1/embeddings."""

import asyncio
import base64
import struct
import time
from dataclasses import dataclass
from typing import Any

from proxy.fake_ollama import requests, text
from proxy.fake_ollama.call import Call
from proxy.fake_ollama.errors import LOAD_FAILED, ApiError
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.options import check_options, keep_alive_of, load_options
from proxy.fake_ollama.scheduler import LoadOptions, Runner

INPUT_TOO_LONG = "the input length exceeds the context length"
PULL_FIRST = ", try pulling it first"
TURN = 64


@dataclass
class Embedded:
    vectors: list[list[float]]
    tokens: int = 0
    total: int = 0
    load: int = 0


@dataclass
class Order:
    model: Model
    inputs: list[str]
    load: LoadOptions
    keep_alive: float | None
    truncate: bool
    dimensions: int


async def embed(call: Call) -> None:
    body = call.bind(requests.EmbedRequest)
    order = read_order(call, body, inputs_of(body.get("input")))
    done = await run(call, order)
    metrics = {
        "total_duration": done.total,
        "load_duration": done.load,
        "prompt_eval_count": done.tokens,
    }
    metrics = call.fault.altered({name: value for name, value in metrics.items() if value})
    await call.reply({"model": body["model"], "embeddings": done.vectors, **(metrics if order.inputs else {})})


async def legacy(call: Call) -> None:
    body = call.bind(requests.EmbeddingRequest)
    asked = body.get("model") or ""
    if not asked:
        raise ApiError(400, "model is required")
    if call.server.library.find_exactly(call.name(asked)) is None:
        raise ApiError(404, f'model "{asked}" not found{PULL_FIRST}')
    prompt = body.get("prompt") or ""
    order = read_order(call, {**body, "truncate": False}, [prompt] if prompt else [])
    done = await run(call, order, normalise=False)
    await call.reply({"embedding": done.vectors[0] if done.vectors else []})


async def openai(call: Call) -> None:
    body = call.bind(requests.OpenAIEmbedRequest)
    given = body.get("input")
    if given in (None, [], ""):
        raise ApiError(400, "invalid input")
    encoding = (body.get("encoding_format") or "").lower()
    if encoding not in ("", "float", "base64"):
        raise ApiError(400, f"invalid encoding_format: {body['encoding_format']}")
    done = await run(call, read_order(call, body, inputs_of(given)))
    data = [
        {"object": "embedding", "embedding": packed(vector) if encoding == "base64" else vector, "index": index}
        for index, vector in enumerate(done.vectors)
    ]
    usage = call.fault.altered({"prompt_tokens": done.tokens, "total_tokens": done.tokens})
    await call.reply_line({"object": "list", "data": data, "model": body["model"], "usage": usage})


def inputs_of(given: Any) -> list[str]:
    if given in (None, ""):
        return []
    inputs = given if isinstance(given, list) else [given]
    if not all(isinstance(item, str) for item in inputs):
        raise ApiError(400, "invalid input type")
    return inputs


def read_order(call: Call, body: dict[str, Any], inputs: list[str]) -> Order:
    asked = body.get("model") or ""
    if not asked:
        raise ApiError(404, "model '' not found")
    model = call.model(asked, quoted='"', hint=PULL_FIRST)
    options = body.get("options") or {}
    check_options(options)
    truncate = body.get("truncate") is not False
    return Order(
        model,
        inputs,
        load_options(options, shift=None),
        keep_alive_of(body),
        truncate,
        max(0, body.get("dimensions") or 0),
    )


async def run(call: Call, order: Order, *, normalise: bool = True) -> Embedded:
    began = time.perf_counter_ns()
    scheduler = call.server.scheduler
    runner = await scheduler.acquire(order.model, order.load, order.keep_alive, call.fault)
    done = Embedded([], load=time.perf_counter_ns() - began)
    try:
        if order.inputs:
            await work(call, order, runner, done, normalise=normalise)
    finally:
        scheduler.release(runner)
    done.total = time.perf_counter_ns() - began
    return done


async def work(call: Call, order: Order, runner: Runner, done: Embedded, *, normalise: bool) -> None:
    if call.fault.load_error_500:
        raise ApiError(500, LOAD_FAILED)
    await runner.take_slot()
    totals = call.server.log.totals
    totals.generations_started += 1
    totals.generations_running += 1
    call.seen.generated = True
    call.server.log.changed()
    finished = False
    try:
        await call.hold_first_byte()
        await fill(call, order, runner, done, normalise=normalise)
        finished = True
    finally:
        runner.give_slot()
        totals.generations_running -= 1
        totals.generations_finished += finished
        totals.generations_disconnected += not finished and call.seen.disconnected
        call.server.log.changed()


async def fill(call: Call, order: Order, runner: Runner, done: Embedded, *, normalise: bool) -> None:
    for number, item in enumerate(order.inputs):
        tokens = text.tokens_of(text.size_of(item))
        if tokens > runner.context and not order.truncate:
            raise ApiError(400, INPUT_TOO_LONG)
        done.tokens += min(tokens, runner.context)
        call.seen.prompt_tokens = done.tokens
        done.vectors.append(vector(order, item, normalise=normalise))
        if number % TURN == TURN - 1:
            await asyncio.sleep(0)


def vector(order: Order, item: str, *, normalise: bool) -> list[float]:
    values = text.vector(order.model.weights, item, order.model.embedding_length)
    if not normalise:
        return values
    if order.dimensions:
        values = values[: order.dimensions]
    return text.normalised(values)


def packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
