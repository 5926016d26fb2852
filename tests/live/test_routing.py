"""Several backends: which one gets a call, what is tried again, and who is left alone (B1, B2, B11, B12, N11)."""

import asyncio
import json
import time
from collections import Counter
from contextlib import contextmanager

import httpx
import pytest
import pytest_asyncio

from proxy.credentials import seal
from proxy.fake_ollama import FakeOllama
from proxy.models import Backend
from tests.live.gateway import PEPPER
from tests.live.seen import PROBES, calls, new_calls
from tests.no_tls import NO_TLS
from tests.ports import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 20
MARKER = "x-ollama-gateway-hops"
# A model for each test: what one test warms, or takes away, does not steer the next.
MODELS = [f"m{number}" for number in range(1, 30)]
EVERY_CALL = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show")
BODIES = {
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}]},
    "/api/generate": {"prompt": "hi"},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/api/show": {},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fakes():
    """One and two have the same models, and each one that the other lacks."""
    common = [*MODELS, "nomic-embed-text"]
    async with (
        FakeOllama(models=[*common, "only-one"], slots=8, vram=500) as one,
        FakeOllama(models=[*common, "only-two"], slots=8, vram=500) as two,
    ):
        yield one, two


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_gateway(make_shared_gateway, fakes):
    made = make_shared_gateway(PROBE_SECONDS="0.05")
    for name, fake in zip(("one", "two"), fakes, strict=True):
        made.make_backend(fake.url, name, slots=2)
    _, made.key = made.make_key()
    return await asyncio.to_thread(made.start)


@pytest_asyncio.fixture(loop_scope="module")
async def quiet(fakes):
    """No faults, nothing held."""
    for fake in fakes:
        await fake.switch(listen=True)
        fake.clear_faults()
        fake.release()
        await fake.saw_idle(timeout=PATIENCE)
    yield
    for fake in fakes:
        fake.clear_faults()
        fake.release()


@pytest.fixture
def one(fakes, quiet):
    return fakes[0]


@pytest.fixture
def two(fakes, quiet):
    return fakes[1]


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared_gateway, one, two):
    await until_served(shared_gateway, one, two)
    return shared_gateway


@pytest.fixture
def model():
    """A model that no other test uses, cold everywhere."""
    return MODELS.pop()


async def until_served(gateway, *fakes):
    """Returns when the gateway has probed each of the fakes twice more, and so believes in them again."""
    since = [len(fake.calls) for fake in fakes]
    async with asyncio.timeout(PATIENCE):
        for fake, start in zip(fakes, since, strict=True):
            while sum(call.path == "/api/ps" and call.complete for call in fake.calls[start:]) < 2:
                await asyncio.sleep(0.02)


async def ask(gateway, path, model, **fields):
    async with gateway.client(gateway.key) as client:
        return await client.post(path, json={"model": model, **BODIES[path], **fields}, timeout=PATIENCE)


async def chat(gateway, model, **fields):
    return await ask(gateway, "/api/chat", model, **fields)


def generations(*fakes):
    return sum(fake.log.totals.generations_started for fake in fakes)


def served_by(answer):
    assert answer.status_code == 200, answer.text
    return answer.headers["x-gateway-backend"]


async def held_calls(gateway, fakes, model, count):
    """Calls that hang after their first token, all of them sent."""
    running = sum(fake.log.totals.generations_running for fake in fakes)
    for fake in fakes:
        fake.faults(path="/api/chat", model=model, hang_after_chunks=1)
    tasks = [asyncio.create_task(chat(gateway, model)) for _ in range(count)]
    async with asyncio.timeout(PATIENCE):
        while sum(fake.log.totals.generations_running for fake in fakes) < running + min(count, 4):
            await asyncio.sleep(0.01)
    return tasks


# Which backend


async def test_warm_comes_before_everything_else(gateway, one, two, model):
    async with httpx.AsyncClient(base_url=two.url, trust_env=False, verify=NO_TLS) as direct:
        await direct.post("/api/generate", json={"model": model})
    await until_served(gateway, two)
    answers = [await chat(gateway, model) for _ in range(6)]
    assert {served_by(answer) for answer in answers} == {"two"}
    assert one.log.totals.loads[f"{model}:latest"] == 0


async def test_then_the_fewest_in_flight_within_the_slots(gateway, one, two, model):
    with new_calls(one) as at_one, new_calls(two) as at_two:
        held = await held_calls(gateway, (one, two), model, 10)
        # More than the slots do not run, however long one waits.
        await until_served(gateway, one, two)
        assert [fake.log.totals.generations_running for fake in (one, two)] == [2, 2]
        for fake in (one, two):
            fake.clear_faults()
            fake.release()
        answers = await asyncio.gather(*held)
    assert Counter(served_by(answer) for answer in answers).keys() == {"one", "two"}
    assert len(at_one) + len(at_two) == 10
    for seen in (at_one, at_two):
        edges = sorted([(call.started, 1) for call in seen] + [(call.ended, -1) for call in seen])
        running = most = 0
        for _, change in edges:
            running += change
            most = max(most, running)
        assert most <= 2


async def test_m6_the_line_is_served_in_the_order_of_admission(gateway, one, two):
    held = await held_calls(gateway, (one,), "only-one", 2)
    waiting = []
    for number in range(8):
        waiting.append(asyncio.create_task(chat(gateway, "only-one", options={"seed": number})))
        await asyncio.sleep(0.005)
    await until_served(gateway, one)
    with new_calls(one) as seen:
        one.clear_faults()
        one.release()
        answers = await asyncio.gather(*held, *waiting)
    ids = [answer.headers["x-request-id"] for answer in answers]
    records = await gateway.wait_for_records(10, id__in=ids)
    admitted = [record.id.hex for record in sorted(records, key=lambda record: record.started_at)]
    sent = [call.header("x-request-id") for call in seen]
    assert len(sent) == 8
    assert sent == [call_id for call_id in admitted if call_id in sent]
    queued = [int(answer.headers["x-gateway-queue-ms"]) for answer in answers[2:]]
    assert all(queued)


async def test_a_model_goes_where_it_is(gateway, one, two):
    for name, fake in (("only-one", one), ("only-two", two)):
        with new_calls(fake) as seen:
            answers = [await chat(gateway, name) for _ in range(4)]
        assert {served_by(answer) for answer in answers} == {name.removeprefix("only-")}
        assert len(seen) == 4


# What is tried again


async def the_record(gateway, answer):
    return await gateway.record(answer.headers["x-request-id"])


async def warm_at_one(gateway, one, model):
    async with httpx.AsyncClient(base_url=one.url, trust_env=False, verify=NO_TLS) as direct:
        await direct.post("/api/generate", json={"model": model})
    await until_served(gateway, one)


@pytest.mark.parametrize("fault", [{"busy_503": True}, {"lacks_model": True}])
@pytest.mark.parametrize("stream", [True, False])
async def test_b1_what_is_busy_or_lacks_the_model_is_asked_once_and_then_the_next(
    gateway, one, two, model, fault, stream
):
    await warm_at_one(gateway, one, model)
    one.faults(path="/api/chat", model=model, **fault, times=1)
    before = generations(one, two)
    with new_calls(one) as at_one, new_calls(two) as at_two:
        answer = await chat(gateway, model, stream=stream)
    assert served_by(answer) == "two"
    assert (len(at_one), len(at_two)) == (1, 1)
    assert generations(one, two) == before + 1
    record = await the_record(gateway, answer)
    assert (record.outcome, record.attempts, record.backend) == ("ok", 2, "two")


async def test_b1_a_backend_that_lacks_the_route_goes_on_serving_the_model(gateway, one, two, model):
    """As older servers do, and other kinds of them. One tenant's call must not take the backend from all others."""
    await warm_at_one(gateway, one, model)
    one.faults(path="/api/chat", model=model, status=404, error="404 page not found", times=1)
    answer = await chat(gateway, model)
    assert served_by(answer) == "two"
    assert json.loads((await the_record(gateway, answer)).routing)["failed"] == [["one", "lacks_route"]]
    after = await the_record(gateway, await chat(gateway, model))
    assert json.loads(after.routing)["of"] == 2


async def test_b1_a_refused_connection_goes_to_the_next(gateway, one, two, model):
    await warm_at_one(gateway, one, model)
    await one.switch(refuse_connections=True, drop_connections=True)
    before = generations(one, two)
    answer = await chat(gateway, model)  # the probes have not noticed yet
    assert served_by(answer) == "two"
    assert generations(one, two) == before + 1
    assert (await the_record(gateway, answer)).attempts == 2


async def test_b1_at_most_one_retry(gateway, one, two, model):
    for fake in (one, two):
        fake.faults(path="/api/chat", model=model, busy_503=True)
    with new_calls(one) as at_one, new_calls(two) as at_two:
        answer = await chat(gateway, model)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert (len(at_one), len(at_two)) == (1, 1)
    record = await the_record(gateway, answer)
    assert (record.outcome, record.attempts, record.completion_tokens) == ("failed", 2, 0)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"reset_before_headers": True}, 502),
        ({"close_before_headers": True}, 502),
        ({"load_error_500": True}, 502),
        ({"status": 400, "error": "no"}, 400),
        ({"reset_after_chunks": 1}, 200),
        ({"eof_after_chunks": 0}, 200),
        ({"error_after_chunks": 1}, 200),
    ],
)
async def test_b2_what_may_have_begun_is_never_generated_twice(gateway, one, two, model, fault, status):
    await warm_at_one(gateway, one, model)
    one.faults(path="/api/chat", model=model, **fault, times=1)
    with new_calls(one) as at_one, new_calls(two) as at_two:
        answer = await chat(gateway, model)
    assert answer.status_code == status
    assert set(json.loads(answer.text.splitlines()[-1])) == {"error"}
    assert (len(at_one), len(at_two)) == (1, 0)
    record = await the_record(gateway, answer)
    assert (record.outcome, record.attempts) == ("failed", 1)


# Nobody can serve it


async def test_unknown_models_are_404_in_the_words_of_ollama(gateway, one):
    async with httpx.AsyncClient(base_url=one.url, trust_env=False, verify=NO_TLS) as direct:
        for path in EVERY_CALL:
            expected = await direct.post(path, json={"model": "nope", **BODIES[path]})
            with new_calls(one) as seen:
                answer = await ask(gateway, path, "nope")
            assert not seen
            assert (answer.status_code, answer.json()) == (404, expected.json()), path


async def test_b1_all_down_is_503_and_a_backend_that_was_down_at_start_is_used_once_it_is_up(make_gateway):
    port = free_port()
    gateway = make_gateway()
    gateway.make_backend(f"http://127.0.0.1:{port}")
    _, gateway.key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    for path in EVERY_CALL:
        began = time.monotonic()
        answer = await ask(gateway, path, "m1")
        assert answer.status_code == 503, path
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]
        assert str(port) not in answer.text
        assert time.monotonic() - began < 10
    async with FakeOllama(port, models=["m1", "nomic-embed-text"]) as fake:
        came_up = time.monotonic()
        while (await chat(gateway, "m1")).status_code == 503:
            assert time.monotonic() - came_up < PATIENCE
        print(f"used {time.monotonic() - came_up:.2f} s after it came up")
        assert generations(fake) == 1


async def test_without_any_backend_it_is_503(make_gateway):
    gateway = make_gateway()
    _, gateway.key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    answer = await chat(gateway, "m1")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


# Names, loops, rules


async def test_b14_a_backend_may_be_a_name(make_gateway, fakes, one):
    gateway = make_gateway()
    gateway.make_backend(f"http://localhost:{one.port}")
    _, gateway.key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    with new_calls(one) as seen:
        assert (await chat(gateway, "m1")).status_code == 200
    assert [call.header("host") for call in seen] == [f"localhost:{one.port}"]


async def test_a_disabled_backend_finishes_its_streams_and_takes_no_new_ones(make_gateway, one, two):
    gateway = make_gateway()
    row = gateway.make_backend(one.url, "one")
    _, gateway.key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    (held,) = await held_calls(gateway, (one,), "m2", 1)
    one.clear_faults()
    gateway.make_backend(two.url, "two")
    gateway.rows(Backend).filter(pk=row.pk).update(enabled=False)
    async with asyncio.timeout(PATIENCE):
        while (answer := await chat(gateway, "m2")).headers.get("x-gateway-backend") != "two":
            await asyncio.sleep(0.05)
    with new_calls(one) as at_one:
        for _ in range(5):
            assert served_by(await chat(gateway, "m2")) == "two"
            assert served_by(await ask(gateway, "/api/embed", "nomic-embed-text")) == "two"
    assert not at_one
    assert not held.done()
    one.release()
    assert served_by(await held) == "one"
    assert json.loads((await held).text.splitlines()[-1])["done"] is True
    assert answer.status_code == 200


async def test_b4_a_probe_that_hangs_hangs_nobody(make_gateway, one, two):
    gateway = make_gateway()
    gateway.make_backend(one.url, "one")
    gateway.make_backend(two.url, "two")
    _, gateway.key = gateway.make_key()
    one.faults(path=[path for _, path in PROBES], hang_before_headers=True)
    await asyncio.to_thread(gateway.start)
    slowest = {}
    async with gateway.client(gateway.key) as client:
        assert served_by(await chat(gateway, "m3")) == "two"
        # One that hangs for the first time is waited for as long as a question may take.
        await client.get("/api/tags")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            for method, path in (
                ("POST", "/api/chat"),
                ("GET", "/api/tags"),
                ("GET", "/api/ps"),
                ("GET", "/api/version"),
            ):
                began = time.monotonic()
                body = {"model": "m3", **BODIES["/api/chat"]} if method == "POST" else None
                answer = await client.request(method, path, json=body)
                assert answer.status_code == 200
                slowest[path] = max(slowest.get(path, 0), time.monotonic() - began)
    print("slowest beside a backend that hangs:", {path: f"{took * 1000:.0f} ms" for path, took in slowest.items()})
    assert max(slowest.values()) < 1.0


# The breaker


def with_faults(fake, **fault):
    fake.faults(path=["/api/chat", "/api/generate"], **fault)


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(make_gateway, one, two):
    """A gateway whose breakers remember nothing, in front of both."""
    gateway = make_gateway(PROBE_SECONDS="0.05")
    gateway.make_backend(one.url, "one")
    gateway.make_backend(two.url, "two")
    _, gateway.key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    await until_served(gateway, one, two)
    return gateway


@contextmanager
def nobody_ejected(gateway):
    before = gateway.log().count("left rotation")
    yield
    assert gateway.log().count("left rotation") == before


async def test_b12_five_faults_in_a_row_eject_and_the_other_serves(fresh, one, two, model):
    await warm_at_one(fresh, one, model)
    with_faults(one, load_error_500=True)
    with new_calls(one) as at_one:
        answers = [await chat(fresh, model) for _ in range(12)]
    assert [answer.status_code for answer in answers] == [502] * 5 + [200] * 7
    assert len(at_one) == 5
    assert "left rotation" in fresh.log()


async def test_b12_the_last_one_is_never_ejected(fresh, one, two, model):
    with_faults(one, load_error_500=True)
    with_faults(two, load_error_500=True)
    with new_calls(one) as at_one, new_calls(two) as at_two:
        answers = [await chat(fresh, model) for _ in range(25)]
    assert {answer.status_code for answer in answers} == {502}
    assert len(at_one) + len(at_two) == 25, "calls go on being tried"
    for fake in (one, two):
        fake.clear_faults()
    assert (await chat(fresh, model)).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"status": 400, "error": "no"}, 400),
        ({"status": 413, "error": "too long"}, 413),
        ({"status": 429, "error": "slow down"}, 429),
        ({"repetition_stop_after": 3}, 200),
    ],
)
async def test_b11_the_callers_faults_never_eject(gateway, one, two, model, fault, status):
    await warm_at_one(gateway, one, model)
    with_faults(one, **fault)
    with nobody_ejected(gateway), new_calls(one) as at_one:
        answers = [await chat(gateway, model) for _ in range(12)]
    assert {answer.status_code for answer in answers} == {status}
    assert len(at_one) == 12


async def test_b11_clients_that_leave_never_eject(gateway, one, two, model):
    await warm_at_one(gateway, one, model)
    with_faults(one, hang_after_chunks=1)
    body = {"model": model, **BODIES["/api/chat"]}
    with nobody_ejected(gateway):
        for _ in range(12):
            async with gateway.client(gateway.key) as client, client.stream("POST", "/api/chat", json=body) as answer:
                assert answer.headers["x-gateway-backend"] == "one"
                await anext(answer.aiter_bytes())
            await one.saw_idle(timeout=PATIENCE)


async def test_b12_retries_are_a_tenth_of_the_traffic_after_a_burst(gateway, one, two, model):
    await warm_at_one(gateway, one, model)
    with_faults(one, busy_503=True)
    with new_calls(one) as at_one, new_calls(two) as at_two:
        answers = [await chat(gateway, model) for _ in range(60)]
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses.keys() <= {200, 503}
    assert len(at_one) + len(at_two) <= 60 + 10 + 6
    assert len(at_two) > 0


@pytest.mark.slow
async def test_b12_an_ejected_backend_comes_back_with_one_call_that_decides(fresh, one, two, model):
    await warm_at_one(fresh, one, model)
    with_faults(one, load_error_500=True)
    for _ in range(6):
        await chat(fresh, model)
    one.clear_faults()
    ejected_at = time.monotonic()
    async with asyncio.timeout(60):
        while served_by(await chat(fresh, model)) != "one":
            await asyncio.sleep(0.2)
    took = time.monotonic() - ejected_at
    print(f"came back after {took:.1f} s")
    assert 25 < took < 40


# N11


def credential(key):
    return {"credential_header": "Authorization", "credential_encrypted": seal(f"Bearer {key}")}


@pytest.fixture
def sealed_for_gateways(settings):
    settings.SECRET_KEY = "a secret of the tests that is long enough to be one"


async def assert_no_loops(gateway, fake, model):
    """Calls end, with an answer or with 508, and none is generated twice."""
    before = generations(fake)
    began = time.monotonic()
    answers = await asyncio.gather(*(chat(gateway, model) for _ in range(12)))
    took = time.monotonic() - began
    statuses = Counter(answer.status_code for answer in answers)
    print(f"{dict(statuses)} in {took:.2f} s")
    assert statuses.keys() <= {200, 508}
    assert generations(fake) - before == statuses[200]
    return statuses


async def test_n11_a_gateway_that_is_its_own_backend_sends_itself_nothing(make_gateway, sealed_for_gateways, one):
    gateway = make_gateway()
    _, gateway.key = gateway.make_key()
    gateway.make_backend(gateway.url, "itself", **credential(gateway.key))
    gateway.make_backend(one.url, "real", slots=2)
    await asyncio.to_thread(gateway.start)
    assert (await assert_no_loops(gateway, one, "m4"))[200] == 12
    assert "Backend itself does not answer" in gateway.log()
    # Also where someone speaks to it as it would itself.
    async with gateway.client(gateway.key) as client:
        mark = calls(one)[-1].header(MARKER)
        for path in ("/api/chat", "/api/generate", "/api/embed", "/api/show", "/api/tags"):
            method = "GET" if path == "/api/tags" else "POST"
            body = None if method == "GET" else {"model": "m4", **BODIES[path]}
            for hops in (mark, f"other,{mark}", f"{mark}, other", "a,b,c,d,e"):
                with new_calls(one) as seen:
                    answer = await client.request(method, path, json=body, headers={MARKER: hops})
                assert (answer.status_code, answer.headers["x-gateway-error"]) == (508, "loop")
                assert not seen


async def test_n11_two_gateways_in_a_ring_end_in_508_and_hang_nobody(make_gateway, sealed_for_gateways, one):
    # Another installation, which knows the same keys.
    first, second = make_gateway(), make_gateway(KEY_PEPPER=f"another pepper,{PEPPER}")
    for gateway in (first, second):
        _, gateway.key = gateway.make_key()
    first.make_backend(one.url, "real", slots=1)
    first.make_backend(second.url, "second", slots=4, **credential(second.key))
    second.make_backend(first.url, "first", slots=20, **credential(first.key))
    for gateway in (first, second):
        await asyncio.to_thread(gateway.start)
    statuses = Counter()
    # Until each has been told by the other what it has, and calls were sent round and recognised.
    async with asyncio.timeout(PATIENCE):
        while (await chat(second, "m5")).status_code != 200:
            await asyncio.sleep(0.05)
        while not statuses[508]:
            statuses += await assert_no_loops(first, one, "m5") + await assert_no_loops(second, one, "m5")
    assert statuses[200]
    for gateway in (first, second):
        async with gateway.client(gateway.key) as client:
            began = time.monotonic()
            assert (await client.get("/api/tags")).status_code == 200
            assert time.monotonic() - began < 1.5
