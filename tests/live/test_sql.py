"""Row A13: SQL through every header and every field of calls. No 500, nothing carried out, nothing lost."""

import asyncio
import itertools
import json
import time

import pytest
import pytest_asyncio

from tenants.models import ApiKey, Tenant
from usage.models import UsageRecord

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = (
    "' OR '1'='1",
    "'; DROP TABLE usage_usagerecord; --",
    '" || (SELECT digest FROM tenants_apikey) || "',
    "\\'; SELECT pg_sleep(20); -- %s {0} $1 ? :name",
)
HEADERS = (
    "authorization", "x-api-key", "user-agent", "x-request-id", "x-forwarded-for", "x-real-ip", "forwarded", "cookie",
    "origin", "referer", "host", "traceparent", "tracestate", "baggage", "content-type", "accept", "accept-language",
    "openai-organization", "anthropic-version", "anthropic-beta", "x-stainless-lang", "idempotency-key",
)  # fmt: skip
MESSAGES = [{"role": "user", "content": "hi"}]
# Of each dialect: a call, and where in it the values go.
BODIES = {
    "/api/chat": (
        {"model": "llama3.2", "stream": False, "messages": MESSAGES, "options": {"num_predict": 2}},
        ("model", "format", "keep_alive", "options", "options.num_ctx", "options.stop", "options.seed", "think",
         "tools", "messages.0.role", "messages.0.content", "messages.0.name", "messages.0.tool_name", "unknown"),
    ),
    "/api/generate": (
        {"model": "llama3.2", "stream": False, "prompt": "hi", "options": {"num_predict": 2}},
        ("model", "prompt", "suffix", "system", "template", "images", "context", "raw", "unknown"),
    ),
    "/api/embed": ({"model": "nomic-embed-text", "input": "hi"}, ("model", "input", "truncate", "dimensions")),
    "/api/show": ({"model": "llama3.2"}, ("model", "verbose", "system")),
    "/api/pull": ({"model": "llama3.2"}, ("model", "insecure")),
    "/v1/chat/completions": (
        {"model": "llama3.2", "max_tokens": 2, "messages": MESSAGES},
        ("model", "user", "stop", "seed", "response_format", "tools", "tool_choice", "stream_options", "metadata",
         "messages.0.role", "messages.0.content", "messages.0.name", "safety_identifier"),
    ),
    "/v1/responses": ({"model": "llama3.2", "input": "hi"}, ("model", "input", "instructions", "user", "metadata")),
    "/v1/messages": (
        {"model": "llama3.2", "max_tokens": 2, "messages": MESSAGES},
        ("model", "system", "metadata", "metadata.user_id", "stop_sequences", "tools", "messages.0.content"),
    ),
}  # fmt: skip
PATHS = ("/v1/models/%s", "/k/%s/api/chat", "/api/%s", "/%s")
CEILING = 60
AT_A_TIME = 8


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request):
    """One database for the module."""
    if request.param == "sqlite":
        yield ""
        return
    cluster = request.getfixturevalue("postgres")
    template = request.getfixturevalue("migrated_template")
    yield cluster.create_database("hostile", template)
    cluster.drop_database("hostile")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake, database_url):
    made = make_shared_gateway(database_url=database_url)
    made.make_backend(shared_fake.url, slots=64)
    made.key_row, made.key = made.make_key(may_manage=False, may_be_in_path=True)
    await asyncio.to_thread(made.start)
    yield await made.until_it_lists("llama3.2", "nomic-embed-text", key=made.key)
    made.close()


def with_value(body, place, value):
    """A copy of a body with a value at `messages.0.content`."""
    made = json.loads(json.dumps(body))
    at = made
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    for part in way:
        at = at[part] if isinstance(part, int) else at.setdefault(part, {})
    at[last] = value
    return made


def hostile_calls():
    """(method, path, headers, body)"""
    for path, (body, places) in BODIES.items():
        for place, value in itertools.product(places, HOSTILE):
            yield "POST", path, {}, with_value(body, place, value)
        for value in HOSTILE:
            yield "POST", path, {}, with_value(body, "options", {value: value})
    chat = BODIES["/api/chat"][0]
    for name, value in itertools.product(HEADERS, HOSTILE):
        yield "POST", "/api/chat", {name: value}, chat
        yield "POST", "/api/chat", {name: f"Bearer {value}"}, chat
    for path, value in itertools.product(PATHS, HOSTILE):
        escaped = "".join(f"%{ord(char):02X}" for char in value)
        yield "GET", path.replace("%s", escaped), {}, None
        yield "GET", f"/api/tags?{escaped}={escaped}", {}, None


async def test_a13_no_header_and_no_field_of_a_call_reaches_the_database_as_sql(gateway, capsys):
    room = asyncio.Semaphore(AT_A_TIME)
    answers = []

    async def ask(client, method, path, headers, body):
        async with room:
            began = time.monotonic()
            content = b"" if body is None else json.dumps(body).encode()
            answer = await client.request(
                method, path, headers={"authorization": f"Bearer {gateway.key}", **headers}, content=content
            )
            answers.append((answer.status_code, f"{method} {path} {headers} {body}", time.monotonic() - began))
            return answer

    async with gateway.client() as client, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask(client, *call)) for call in hostile_calls()]
    wrong = [f"{status} {call}" for status, call, _ in answers if status >= 500 and status != 501]
    assert wrong == []
    assert "Traceback" not in gateway.log(), gateway.log()[-3000:]
    longest = max(seconds for _, _, seconds in answers)
    with capsys.disabled():
        print(f"\n  {len(answers)} hostile calls, the longest took {longest:.2f} s", end=" ")
    admitted = [task.result() for task in asked if task.result().status_code == 200]
    ids = {answer.headers["x-request-id"] for answer in admitted if answer.request.method == "POST"}
    async with asyncio.timeout(CEILING):  # each admitted call has its record, whatever stood in it
        while len(known := {row.pk.hex for row in gateway.rows(UsageRecord).filter(pk__in=ids)}) < len(ids):
            await asyncio.sleep(0.1)
    assert known == ids
    assert not (gateway.directory / "spool" / "quarantine.jsonl").exists()
    # Kept as they came, where they are kept at all.
    agents = set(gateway.rows(UsageRecord).values_list("user_agent", flat=True))
    assert set(HOSTILE) <= agents
    users = set(gateway.rows(UsageRecord).values_list("end_user", flat=True))
    assert set(HOSTILE) <= users
    assert (gateway.rows(Tenant).count(), gateway.rows(ApiKey).count()) == (1, 1)
    assert gateway.rows(ApiKey).get().revoked_at is None
    async with gateway.client(gateway.key) as client:
        assert (await client.post("/api/chat", json=BODIES["/api/chat"][0])).status_code == 200
