"""All clients against one gateway, and what is wrong with what they got."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.fake_ollama import FakeOllama, text
from proxy.fake_ollama.calls import SeenCall
from proxy.fake_ollama.generation import THINKING_TOKENS
from proxy.fake_ollama.names import parse_name
from proxy.models import RefusalCount
from tenants.keys import digest, make_clear_text
from tenants.models import ApiKey, Limit
from tests.clients import sequences
from tests.clients.catalogue import CLIENTS, Client
from tests.clients.driver import Driver
from tests.clients.drivers.jobs import ENOUGH, IMAGE, MODELS, QUESTIONS, SCHEMA
from tests.live.gateway import PEPPER, Gateway
from usage.models import UsageRecord

# Chunks with all that has broken clients; ASCII-escaped on the wire where Go does so.
PIECES = ("Because ", "of ", "<b>Rayleigh</b> & ", "Grüße\u2028", "世界 ", "😀", "\n\n", 'data: {"done":true}', " end.")
TOKENS = 16
WAIT_SECONDS = 2
AT_A_TIME = 8
# Scenarios that a program runs as another one, with a key of its own.
RUN_AS = {"bad_key": "refused", "limit": "refused", "wait": "chat"}
GENERATION_PATHS = ("/api/chat", "/api/generate", "/v1/*")
Ask = Callable[[str, str, str], Awaitable[dict[str, Any]]]


def make_fake() -> FakeOllama:
    """Steered by the names of its models, so that calls of several clients may run side by side."""
    missing = (MODELS["unknown"], MODELS["pull"])
    models = [model for model in MODELS.values() if model not in missing]
    fake = FakeOllama(models=models, slots=64, vram=22.0, tokens=TOKENS)
    fake.pullable.add(parse_name(MODELS["pull"]).key)
    fake.faults(path=GENERATION_PATHS, model=MODELS["chat"], content=PIECES)
    fake.faults(path=GENERATION_PATHS, model=MODELS["endless"], infinite=True, tokens_per_second=50.0)
    fake.faults(path=GENERATION_PATHS, model=MODELS["broken"], error_after_chunks=ENOUGH)
    return fake


@dataclass
class Trial:
    """One scenario of one client, with a key of its own, by which its calls are told from others."""

    client: Client
    column: str
    scenario: str
    key: ApiKey
    clear_text: str
    answer: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    records: list[UsageRecord] = field(default_factory=list)
    calls: list[SeenCall] = field(default_factory=list)
    refusals: int = 0


def make_trials(gateway: Gateway, clients: Sequence[Client]) -> list[Trial]:
    trials = []
    tenant = gateway.tenant()
    for client in clients:
        for column in client.columns():
            for scenario in client.scenarios(column):
                prefix, clear_text = make_clear_text()
                secret = digest(clear_text.encode(), PEPPER.encode())
                key = ApiKey(
                    tenant=tenant,
                    name=f"{client.name} {scenario}"[:100],
                    prefix=prefix,
                    digest=secret,
                    may_manage=scenario == "pull",
                    may_be_in_path=client.key_in_path,
                )
                trials.append(Trial(client, column, scenario, key, clear_text))
    gateway.rows(ApiKey).bulk_create(trial.key for trial in trials)
    of_key = {"scope": Limit.Scope.KEY, "metric": Limit.Metric.REQUESTS}
    limits = [Limit(key=trial.key, window="day", amount=0, **of_key) for trial in trials if trial.scenario == "limit"]
    limits += [
        Limit(key=trial.key, window="seconds", window_seconds=WAIT_SECONDS, amount=1, **of_key)
        for trial in trials
        if trial.scenario == "wait"
    ]
    gateway.rows(Limit).bulk_create(limits)
    return trials


async def until_served(gateway: Gateway, seconds: float) -> None:
    """Waits until the gateway knows what its backend has: it is ready before."""
    _, key = gateway.make_key("the tests")
    async with gateway.client(key) as client, asyncio.timeout(seconds):
        while True:
            answer = await client.get("/api/tags")
            if answer.status_code == 200 and answer.json()["models"]:
                return
            await asyncio.sleep(0.1)


async def until_stored(gateway: Gateway, fake: FakeOllama, seconds: float) -> None:
    """Waits for a record of each call that the backend saw; what is missing then shows in `gather_traces`."""
    wanted = sum(call.header("x-request-id") is not None for call in fake.calls)
    deadline = time.monotonic() + seconds
    while gateway.rows(UsageRecord).count() < wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


async def run(trials: Sequence[Trial], url: str, drivers: Mapping[str, Driver]) -> None:
    """Clients side by side, the scenarios of each one after the other."""
    room = asyncio.Semaphore(AT_A_TIME)

    async def run_client(client: Client) -> None:
        async with room:
            for trial in trials:
                if trial.client is client:
                    await run_trial(trial, url, drivers.get(client.name))

    await asyncio.gather(*(run_client(client) for client in CLIENTS))


async def run_trial(trial: Trial, url: str, driver: Driver | None) -> None:
    scenario = RUN_AS.get(trial.scenario, trial.scenario)
    key = trial.clear_text
    if trial.scenario == "bad_key":
        key = make_clear_text()[1]
    began = time.monotonic()
    for _ in range(2 if trial.scenario == "wait" else 1):
        if driver is not None:
            trial.answer = await driver.ask(scenario, url, key)
        else:
            trial.answer = await sequences.ask(trial.client.name, scenario, url, key)
    trial.seconds = time.monotonic() - began


def gather_traces(trials: Sequence[Trial], gateway: Gateway, fake: FakeOllama) -> list[str]:
    """Gives each trial its records and calls; returns what belongs to none. The gateway has stopped."""
    by_key = {trial.key.pk: trial for trial in trials}
    by_prefix = {trial.key.prefix: trial for trial in trials}
    calls = {request_id: call for call in fake.calls if (request_id := call.header("x-request-id"))}
    problems = []
    for record in gateway.records():
        trial = by_key[record.api_key_id]
        trial.records.append(record)
        if call := calls.pop(record.id.hex, None):
            trial.calls.append(call)
        elif record.outcome != "failed":
            problems.append(f"{trial.client.name}, {trial.scenario}: a record of a call that the backend never saw")
    problems += [f"{call.method} {call.path} has no record" for call in calls.values()]
    for refusal in gateway.rows(RefusalCount).exclude(key_prefix=""):
        if refusal.key_prefix in by_prefix:
            by_prefix[refusal.key_prefix].refusals += refusal.count
    return problems


# What is wrong with a trial


def problems_of(trial: Trial, fake: FakeOllama) -> list[str]:
    if "failure" in trial.answer:
        return [trial.answer["failure"]]
    try:
        return [*CHECKS[trial.scenario](trial, fake), *problems_of_records(trial)]
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        return [f"{exc!r} in {trial.answer!r:.2000}"]


OUTCOMES = {"broken": "failed", "cancel": "cancelled"}
# Records that a scenario makes at least; one where it is not named.
RECORDS = {
    "tools": 2,
    "count_tokens": 0,
    "wait": 2,
    "list": 0,
    "unknown_model": 0,
    "bad_key": 0,
    "limit": 0,
    "whole_context": 0,
}


def problems_of_records(trial: Trial) -> Iterator[str]:
    least = RECORDS.get(trial.scenario, 1)
    if trial.scenario == "show" and trial.client.dialect != "Ollama":
        least = 0  # listings are answered by the gateway itself
    if len(trial.records) < least:
        yield f"{len(trial.records)} records, not {least} or more"
    seen = {call.header("x-request-id"): call for call in trial.calls}
    for record in trial.records:
        call = seen.get(record.id.hex)
        if call is None:  # refused after admission: no backend serves it
            continue
        outcome = OUTCOMES.get(trial.scenario, "ok") if call.generated else "ok"
        if record.outcome != outcome:
            yield f"the record of {call.path} says {record.outcome} {record.error}, not {outcome}"
        counted = (record.prompt_tokens, record.completion_tokens)
        if outcome == "ok" and (counted != (call.prompt_tokens, call.tokens) or record.estimated):
            yield f"the record of {call.path} says {counted} tokens, the backend {(call.prompt_tokens, call.tokens)}"
        if outcome == "cancelled" and not call.disconnected:
            yield f"{call.path} went on at the backend"


def check_text(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    yield from differs("text", trial.answer["text"], "".join(PIECES))
    yield from check_tokens(trial)


def check_tokens(trial: Trial) -> Iterator[str]:
    """The counts that the client shows are those of its last call."""
    if "tokens" in trial.answer and trial.calls:
        call = max((call for call in trial.calls if call.generated), key=lambda call: call.started)
        yield from differs("tokens", trial.answer["tokens"], [call.prompt_tokens, call.tokens])


def check_chat(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    if "tokens" not in trial.answer:
        yield "the client was told no tokens"
    yield from check_text(trial, fake)


def check_stream(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    yield from check_chat(trial, fake)
    yield from differs("chunks", trial.answer["chunks"], len(PIECES))


def check_stream_without_usage(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    yield from check_text(trial, fake)
    yield from differs("usage", trial.answer["usage"], [])


def check_plain_text(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    yield from differs("text", trial.answer["text"], text.joined_words(text.first_words(TOKENS)))
    yield from check_tokens(trial)


def check_tools(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    tool = QUESTIONS["tool"]
    yield from differs("calls", trial.answer["calls"], [[tool["name"], text.instance(tool["parameters"])]])
    yield from check_plain_text(trial, fake)


def check_images(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    yield from check_plain_text(trial, fake)
    if not any(IMAGE.encode() in call.body for call in trial.calls):
        yield "the backend got no image"


def check_thinking(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    thoughts = text.joined_words(text.first_words(THINKING_TOKENS, None, "thought"))
    yield from differs("thinking", trial.answer["thinking"], thoughts)
    yield from check_plain_text(trial, fake)


def check_structured(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    yield from differs("value", json.loads(trial.answer["text"]), text.instance(SCHEMA))
    yield from check_tokens(trial)


def check_embeddings(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    model = fake.library.find(parse_name(MODELS["embedding"]))
    assert model is not None
    # As float32, which base64 carries.
    wanted = [
        [round(value, 5) for value in text.normalised(text.vector(model.weights, words, model.embedding_length))]
        for words in QUESTIONS["inputs"]
    ]
    got = [[round(value, 5) for value in vector] for vector in trial.answer["vectors"]]
    yield from differs("vectors", got, wanted)
    yield from check_tokens(trial)


def check_list(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    if "models" in trial.answer:
        missing = {parse_name(name).display for name in MODELS.values()} - set(trial.answer["models"])
        missing -= {parse_name(MODELS[name]).display for name in ("unknown", "pull")}
        yield from differs("missing models", sorted(missing), [])
    else:
        yield from differs("refused", trial.answer["refused"], "ValidationError")


def check_show(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    model = fake.library.find(parse_name(MODELS["tools"]))
    assert model is not None
    right = {
        "id": MODELS["tools"],
        "capabilities": list(model.capabilities),
        "family": model.family,
        "context_length": model.context_length,
    }
    for name, value in trial.answer.items():
        yield from differs(name, value, right[name])


def check_pull(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    statuses = trial.answer["statuses"]
    yield from differs("first and last status", [statuses[0], statuses[-1]], ["pulling manifest", "success"])


def check_count_tokens(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    """An estimate of the gateway's: Ollama has no such route."""
    if not 0 < trial.answer["input_tokens"] < 1000:
        yield f"{trial.answer} for a short question"


def check_wait(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    """The second call was refused, and made again when its time had come."""
    yield from check_text(trial, fake)
    if trial.seconds < WAIT_SECONDS:
        yield f"two calls within {trial.seconds:.1f} s passed a limit of one in {WAIT_SECONDS} s"


def error(message: str) -> Callable[[Trial, FakeOllama], Iterator[str]]:
    def check(trial: Trial, fake: FakeOllama) -> Iterator[str]:
        answer = trial.answer
        raised = (answer.get("class"), answer.get("status"))
        yield from differs("error", raised, trial.client.errors[trial.scenario])
        if message not in answer.get("message", "") and answer["class"] != "HeadRefused":
            yield f"the error says {answer.get('message')!r}, not {message!r}"
        if trial.scenario == "limit" and trial.refusals != 1:
            yield f"{trial.refusals} attempts of a call that can never fit"

    return check


def check_broken(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    native = "an error was encountered while running the model"
    yield from error(native if trial.client.dialect == "Ollama" else "The backend broke off its answer")(trial, fake)


def check_cancel(trial: Trial, fake: FakeOllama) -> Iterator[str]:
    yield from differs("beginning", trial.answer["text"].split()[:ENOUGH], [f"tok{n + 1}" for n in range(ENOUGH)])


def differs(what: str, got: object, wanted: object) -> Iterator[str]:
    if got != wanted:
        yield f"{what}: {got!r}, not {wanted!r}"


CHECKS: Mapping[str, Callable[[Trial, FakeOllama], Iterator[str]]] = {
    "chat": check_chat,
    "completion": check_chat,
    "stream": check_stream,
    "stream_without_usage": check_stream_without_usage,
    "responses": check_chat,
    "tools": check_tools,
    "images": check_images,
    "thinking": check_thinking,
    "structured": check_structured,
    "embeddings": check_embeddings,
    "list": check_list,
    "show": check_show,
    "pull": check_pull,
    "unknown_model": error(f"model '{MODELS['unknown']}' not found"),
    "bad_key": error("API key"),
    "limit": error("The limit of 0 requests"),
    "whole_context": error("num_ctx 131072 is more than"),
    "count_tokens": check_count_tokens,
    "wait": check_wait,
    "broken": check_broken,
    "cancel": check_cancel,
}
