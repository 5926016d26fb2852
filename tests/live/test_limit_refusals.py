"""Row U6, issue 5: every 429 says which limit, what is left, when it resets; each metric × window × scope × dialect."""

import calendar
import re
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from django.db import transaction

from proxy.fake_ollama import FakeOllama
from tenants.models import ApiKey, Limit, Tenant, User
from usage.models import Price

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 90
SCOPES = ("default", "tenant", "user", "key", "address")
WINDOWS = ("seconds", "minute", "hour", "day", "month")
COUNTED = [
    *((metric, window) for metric in ("requests", "tokens", "cost") for window in WINDOWS),
    ("concurrent", "none"),
]
# One call uses its 100 tokens; a second one asks for so many that it fits into the limit, but not beside the first.
TOKENS, CAP = 100, 900
AMOUNTS = {"requests": 1, "tokens": 1000, "cost": 1_000_000, "concurrent": 1}
NANO_A_TOKEN = 1000
PATIENCE = 30


@dataclass
class Case:
    scope: str
    metric: str
    window: str
    model: str = "any"
    key: str = ""
    address: str = ""
    subject: str = ""

    @property
    def words(self):
        """What the text calls the limit."""
        what = {"cost": "nano-units of cost", "concurrent": "calls at a time"}.get(self.metric, self.metric)
        each = {"seconds": f" per {SECONDS} s", "none": ""}.get(self.window, f" per {self.window}")
        model = "" if self.model == "any" else f" of {self.model}:latest"
        return f"The limit of {AMOUNTS[self.metric]} {what}{each}{model} for {self.subject} is reached: "

    def seconds_left(self, now):
        """Until the window ends, by a calendar."""
        at = datetime.fromtimestamp(now, UTC)
        start = at.replace(microsecond=0, second=0)
        if self.window == "minute":
            return (start + timedelta(minutes=1)).timestamp() - now
        start = start.replace(minute=0)
        if self.window == "hour":
            return (start + timedelta(hours=1)).timestamp() - now
        start = start.replace(hour=0)
        days = 1 if self.window == "day" else calendar.monthrange(at.year, at.month)[1] - at.day + 1
        return (start + timedelta(days=days)).timestamp() - now


CASES = [Case(scope, metric, window) for scope in SCOPES for metric, window in COUNTED]


def of_ollama(said):
    return said["error"], None


def of_openai(said):
    assert set(said["error"]) >= {"message", "type", "code"}
    return said["error"]["message"], said["error"]["code"]


def of_anthropic(said):
    assert (said["type"], said["error"]["type"]) == ("error", "rate_limit_error")
    return said["error"]["message"], None


MESSAGES = [{"role": "user", "content": "hi"}]
DIALECTS = {
    "/api/chat": (lambda cap: {"stream": False, "options": {"num_predict": cap}}, of_ollama),
    "/v1/chat/completions": (lambda cap: {"max_tokens": cap}, of_openai),
    "/v1/messages": (lambda cap: {"max_tokens": cap}, of_anthropic),
}


def body(path, model, cap):
    return {"model": model, "messages": MESSAGES, **DIALECTS[path][0](cap)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake():
    # Limits for everybody are of one model each, so that they do not meet.
    own = [case for case in CASES if case.scope in ("default", "address")]
    for number, case in enumerate(own):
        case.model = f"model{number}"
    async with FakeOllama(
        models=["any", *(case.model for case in own)], slots=64, tokens=TOKENS, vram=10_000.0
    ) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(make_shared_gateway, fake):
    gateway = make_shared_gateway(TRUSTED_PROXIES="127.0.0.0/8")
    gateway.make_backend(fake.url, slots=64)
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    gateway.rows(Price).create(
        model="*", input_nano=NANO_A_TOKEN * 10**6, output_nano=NANO_A_TOKEN * 10**6, valid_from=moment
    )
    with transaction.atomic(using=gateway.alias):
        for number, case in enumerate(CASES):
            prepare(gateway, number, case)
    gateway.start()
    return gateway


def prepare(gateway, number, case):
    tenant = gateway.rows(Tenant).create(name=f"tenant{number}")
    user = gateway.rows(User).create(username=f"user{number}")
    row, case.key = gateway.make_key(f"key{number}", tenant=tenant.name, user=user)
    case.address = f"10.1.0.{number}"
    owner = {"tenant": {"tenant": tenant}, "user": {"user": user}, "key": {"key": row}}.get(case.scope, {})
    case.subject = {
        "tenant": f"the tenant {tenant.name}",
        "user": f"the user {user.username}",
        "address": "your address",
    }.get(case.scope, f"key {row.prefix}")
    seconds = SECONDS if case.window == "seconds" else None
    gateway.rows(Limit).create(
        scope=case.scope, metric=case.metric, window=case.window, window_seconds=seconds, amount=AMOUNTS[case.metric],
        model="" if case.model == "any" else case.model, **owner,
    )  # fmt: skip
    assert isinstance(row, ApiKey)


async def ask(client, case, path, cap=CAP):
    headers = {"authorization": f"Bearer {case.key}", "x-forwarded-for": case.address}
    return await client.post(path, json=body(path, case.model, cap), headers=headers)


async def fill(client, stack, case):
    """Makes the call that the others do not fit beside."""
    if case.metric != "concurrent":
        answer = await ask(client, case, "/api/chat", TOKENS)
        assert answer.status_code == 200, answer.text
        return
    headers = {"authorization": f"Bearer {case.key}", "x-forwarded-for": case.address}
    request = {**body("/api/chat", case.model, CAP), "stream": True, "options": {"num_predict": 50_000}}
    answer = await stack.enter_async_context(client.stream("POST", "/api/chat", json=request, headers=headers))
    lines = answer.aiter_lines()
    stack.push_async_callback(lines.aclose)  # kept until then: a generator that is let go closes the stream
    await anext(lines)


async def test_u6_every_refusal_says_which_limit_what_is_left_and_when_it_resets(gateway, fake):
    await gateway.until_it_lists("any", key=CASES[0].key)
    wrong = []
    async with gateway.client() as client:
        for case in CASES:
            async with AsyncExitStack() as stack:
                held = None
                if case.metric == "concurrent":
                    held = fake.faults(path="/api/chat", model=case.model, hang_after_chunks=1)
                deadline = time.monotonic() + PATIENCE
                while True:
                    began = time.time()
                    await fill(client, stack, case)
                    answers = [await ask(client, case, path) for path in DIALECTS]
                    # The window may have turned in between: then again.
                    turned = case.window not in ("seconds", "none") and case.seconds_left(began) < time.time() - began
                    if not turned or time.monotonic() > deadline:
                        break
                for path, answer in zip(DIALECTS, answers, strict=True):
                    wrong += [
                        f"{case.scope} {case.metric} {case.window} {path}: {text}"
                        for text in faults(case, path, answer)
                    ]
                if held is not None:
                    fake.book.rules.remove(held)
    assert not wrong, "\n".join(wrong)


def faults(case, path, answer):
    """What is wrong with a refusal."""
    if answer.status_code != 429:
        return [f"{answer.status_code} {answer.text[:300]}"]
    found = []
    code = "budget_cost" if case.metric == "cost" else f"limit_{case.metric}"
    text, said_code = DIALECTS[path][1](answer.json())
    if answer.headers["x-gateway-error"] != code or said_code not in (None, code):
        found.append(f"the code is {answer.headers['x-gateway-error']}, {said_code}")
    shape = re.escape(case.words) + r"(\d+) left, this call needs (\d+)\. Try again in (\d+) s\.$"
    match = re.match(shape, text)
    if match is None:
        return [*found, f"the text is {text!r}, not {case.words}…"]
    left, needed, seconds = map(int, match.groups())
    told = {name.removeprefix("x-ratelimit-"): value for name, value in answer.headers.items() if "ratelimit" in name}
    wanted = {f"limit-{case.metric}": str(AMOUNTS[case.metric]), f"remaining-{case.metric}": str(left)}
    if case.metric != "concurrent":
        wanted[f"reset-{case.metric}"] = told.get(f"reset-{case.metric}", "nothing")
    if told != wanted:
        found.append(f"the headers are {told}, not {wanted}")
    if case.metric in ("requests", "concurrent") and (left, needed) != (0, 1):
        found.append(f"{left} left, {needed} needed")
    if case.metric in ("tokens", "cost") and not 0 < left < needed <= AMOUNTS[case.metric]:
        found.append(f"{left} left, {needed} needed")
    if answer.headers["retry-after"] != str(seconds):
        found.append(f"retry-after {answer.headers['retry-after']}, and in the text {seconds}")
    if (answer.headers.get("x-should-retry") == "false") != (seconds > 60):
        found.append(f"x-should-retry {answer.headers.get('x-should-retry')} for {seconds} s")
    reset = told.get(f"reset-{case.metric}", "0s")
    if case.window == "seconds" and not (0 < seconds <= SECONDS + 3 and reset == f"{SECONDS}s"):
        found.append(f"{seconds} s, reset {reset}")
    if case.window in ("minute", "hour", "day", "month"):
        left_now = case.seconds_left(time.time())
        if not left_now - 1 <= seconds <= left_now + PATIENCE or abs(int(reset[:-1]) - seconds) > 1:
            found.append(f"{seconds} s, reset {reset}, and the window ends in {left_now:.0f} s")
    return found
