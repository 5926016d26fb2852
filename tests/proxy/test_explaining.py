"""What is explained is what happens: random configurations, asked first and then called, in this very process."""

import asyncio
import dataclasses
import time
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from django.conf import settings as django_settings
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from proxy.admission import Admission
from proxy.client_address import parse_address
from proxy.consumers import GatewayConsumer
from proxy.explaining import Question, Verdict, explain, samples, world_in
from proxy.fake_ollama import FakeOllama
from proxy.fleet import Fleet
from proxy.fleet.state import BackendState, InstalledModel, WarmModel
from proxy.ledger import Ledger
from proxy.limits import Amounts
from proxy.queue import Line
from proxy.routes import Kind, find
from proxy.runtime import Runtime
from proxy.snapshot import Backend, IPRuleRow, Policy, Snapshot, Tables
from proxy.upstream.wire import Endpoint, Pool
from tests.live.seen import new_calls
from tests.proxy.rules import PEPPER, limit, new_key
from usage.costs import PriceRow

PATIENCE = 30
INSTALLED = ("llama3.2:latest", "qwen3:8b", "nomic-embed-text:latest")
ADDRESSES = ("10.0.0.5", "10.1.2.3", "203.0.113.9", "::ffff:10.0.0.5", "2001:db8::7", None)
NETWORKS = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.0.0.5/32", "::ffff:10.0.0.0/104", "2001:db8::/32", "::/0")
PATHS = (
    "/api/chat", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/v1/chat/completions",
    "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/api/tags",
    "/v1/models", "/api/version", "/api/ps", "/", "/api/nothing",
)  # fmt: skip
MODELS = ("llama3.2", "qwen3:8b", "nomic-embed-text", "gpt-4o", "gpt-oss:20b", "text-embedding-3", "nick", "gone", "",
          "no name!", "qwen3:480b-cloud")  # fmt: skip
SOON, PAST = 3600.0, -60.0

rarely = st.sampled_from([False] * 9 + [True])
mostly = st.sampled_from([True] * 6 + [False])


def some(values, most):
    return st.lists(values, max_size=most)


@st.composite
def rule(draw):
    scope = draw(st.sampled_from(["all", "tenant_id", "key_id", "acts_as_id"]))
    action = "allow" if scope == "acts_as_id" else draw(st.sampled_from(["allow", "deny"]))
    ends = draw(st.sampled_from([None, None, SOON, PAST]))
    subject = {} if scope == "all" else {scope: 1}
    return IPRuleRow(draw(st.sampled_from(NETWORKS)), action, expires_at=ends and time.time() + ends, **subject)


@st.composite
def limit_row(draw, number):
    scope = draw(st.sampled_from(["default", "tenant", "user", "key", "address"]))
    metric = draw(st.sampled_from(["requests", "tokens", "cost", "concurrent"]))
    window = "none" if metric == "concurrent" else draw(st.sampled_from(["seconds", "minute", "hour", "day", "month"]))
    made = limit(
        number, metric=metric, window=window, seconds=draw(st.sampled_from([60, 3600])) if window == "seconds" else 0,
        amount=draw(st.sampled_from([0, 1, 2, 3, 5000, 10**9])), enforced=draw(mostly), per_address=scope == "address",
        model=draw(st.sampled_from(["", "", "llama3.2:latest"])),
    )  # fmt: skip
    return scope, 1 if scope == "tenant" else None, 1 if scope == "user" else None, 1 if scope == "key" else None, made


@st.composite
def backend(draw, number):
    has = draw(st.lists(st.sampled_from(INSTALLED), unique=True))
    return SimpleNamespace(
        number=number, has=has, warm=draw(st.lists(st.sampled_from(has), unique=True)) if has else [],
        is_up=draw(mostly), enabled=draw(mostly), remote=draw(rarely), is_broken=draw(rarely),
        slots=draw(st.sampled_from([1, 2])), taken=draw(st.sampled_from([0, 0, 1, 2])),
    )  # fmt: skip


@st.composite
def case(draw):
    fields = {
        "id": 1,
        "tenant_id": draw(st.sampled_from([1, 1, 1, 1, 3])),
        "user_id": draw(st.sampled_from([None, 1, 1, 1, 2])),
        "enabled": draw(mostly),
        "revoked": draw(rarely),
        "expires_at": draw(st.sampled_from([None, None, None, time.time() + SOON, time.time() + PAST])),
        "models": draw(
            st.sampled_from([(), (), (), ("llama3.2:latest",), ("qwen*",), ("nick:latest",), ("gpt-4o:latest",)])
        ),
        "rights": (draw(mostly), draw(mostly), draw(rarely), draw(rarely), False),
        "max_output_tokens": draw(st.sampled_from([None, 100])),
    }
    if fine := draw(st.booleans()):
        # Half of them get past the key: what comes after it is to be met, too.
        fields |= {"tenant_id": 1, "enabled": True, "revoked": False, "expires_at": None, "models": ()}
        fields |= {"user_id": 1, "rights": (True, True, False, False, False)}
    return SimpleNamespace(
        fields=fields,
        credential="right" if fine else draw(st.sampled_from(["right", "right", "none", "wrong", "previous"])),
        overlap=draw(st.sampled_from([SOON, PAST])),
        ip_rules=[] if fine else draw(some(rule(), 4)),
        address=draw(st.sampled_from(ADDRESSES)),
        aliases=tuple(draw(st.lists(st.sampled_from(
            [("gpt-*", "@chat"), ("text-embedding-*", "@embedding"), ("nick", "llama3.2"), ("gpt-4o", "qwen3:8b")]
        ), unique=True))),
        defaults=draw(st.sampled_from([{}, {"@chat": "qwen3:8b"}, {"@chat": "gone"}])),
        policies=draw(st.sampled_from([(), (Policy("llama*", num_ctx=8192, max_output_tokens=50),)])),
        limits=[draw(limit_row(number)) for number in range(1, draw(st.integers(0, 3)) + 1)],
        used=draw(st.integers(0, 3)),
        prices=draw(st.booleans()),
        backends=[draw(backend(number)) for number in range(1, draw(st.sampled_from([0, 1, 1, 2, 3])) + 1)],
        line_length=draw(st.sampled_from([0, 5])),
        draining=draw(st.sampled_from([False] * 30 + [True])),
        throttled=draw(rarely),
        path=draw(st.sampled_from(PATHS[:10] if fine else PATHS)),
        wrong_method=draw(st.sampled_from([False] * 20 + [True])),
        model=draw(st.sampled_from(MODELS)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A loop, a fake Ollama in it, a way to it, and a ledger."""
    configuration = dataclasses.replace(
        django_settings.GATEWAY, spool_dir=tmp_path_factory.mktemp("spool"), key_pepper=PEPPER, key_pepper_fallbacks=(),
        redis_url="", cors_origins=(), trusted_proxies=(),
    )  # fmt: skip
    with asyncio.Runner() as runner:
        fake = FakeOllama(models=list(INSTALLED), slots=8)
        runner.run(fake.__aenter__())
        pool = runner.run(_pool(fake))
        yield SimpleNamespace(
            runner=runner, fake=fake, pool=pool, configuration=configuration, ledger=Ledger(configuration)
        )
        pool.close()
        runner.run(fake.__aexit__(None, None, None))


async def _pool(fake):
    return Pool(Endpoint(("127.0.0.1",), int(fake.url.rpartition(":")[2]), None, "127.0.0.1", 5))


def runtime_of(case, here):
    """(runtime, key, its clear text, the previous one): as a worker is that has read these tables."""
    row, clear_text, digests = new_key(**case.fields)
    _, previous, old = new_key(id=1)
    row = row._replace(previous_expires_at=time.time() + case.overlap)
    digests |= dict.fromkeys(old, (1, True))
    prices = (PriceRow(1, "*", datetime(2020, 1, 1, tzinfo=UTC), "", 10**9, 10**9),) if case.prices else ()
    backends = tuple(
        Backend(made.number, f"b{made.number}", here.fake.url, made.enabled, made.slots, None, "wire")
        for made in case.backends
    )
    tables = Tables(
        tenants={1: ("acme", True), 3: ("closed", False)}, users={1: ("ann", True), 2: ("gone", False)},
        keys={1: row}, digests=digests, ip_rules=tuple(case.ip_rules), limits=tuple(case.limits),
        aliases=case.aliases, default_models=case.defaults, policies=case.policies, backends=backends, prices=prices,
    )  # fmt: skip
    runtime = Runtime(here.configuration)
    runtime.admission = Admission(b"authorization", PEPPER)
    runtime.snapshot = Snapshot(tables, runtime.now())
    runtime.ledger = here.ledger
    runtime.draining = case.draining
    runtime._nothing_runs = asyncio.Event()
    runtime._rules = SimpleNamespace(last_contact=time.monotonic() + 1e6)
    runtime.fleet = Fleet(here.configuration)
    runtime.fleet.line = Line(case.line_length)
    for made, known in zip(case.backends, backends, strict=True):
        runtime.fleet.states[made.number] = state_of(made, known, here.pool)
    runtime.fleet.look_around()
    use_up(case, runtime, row)
    if case.throttled:
        while not runtime.credential_failures.count(parse_address(case.address or "")):
            pass
    return runtime, row, clear_text, previous


def state_of(made, known, pool):
    state = BackendState(known, pool, probed=True, answered=made.is_up, version="0.12.0")
    state.models = {
        name: InstalledModel(
            f"sha-{name}", 0, {"remote_host": "https://ollama.com"} if made.remote else {"name": name}, made.remote
        )
        for name in made.has
    }
    state.warm = {name: WarmModel(4096, {}) for name in made.warm}
    for name in made.has:
        for _ in range(min(made.taken, made.slots)):
            state.take(name)
    if made.is_broken:
        state.breaker.open_until = time.monotonic() + 60
    return state


def use_up(case, runtime, row):
    rules = runtime.snapshot.grant(row).rules
    address = str(parse_address(case.address or ""))
    for number in range(case.used):
        try:
            held = runtime.limits.reserve(f"before {number}", rules, "llama3.2:latest", address, Amounts(500, 1000))
        except Exception:
            return
        if number % 2:
            runtime.limits.settle(held, Amounts(400, 900))


async def called(case, here, runtime, key):
    """(status, code, whether the backend was asked) of the real call; None as status for one that waits in line."""
    route = chosen_route(case)
    body = samples.bytes_of(route, case.model) if route is not None and route.endpoint is not None else b""
    method = "PATCH" if case.wrong_method else route.method if route is not None else "POST"
    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"%d" % len(body))]
    if key is not None:
        headers.append((b"authorization", b"Bearer " + key))
    scope = {
        "type": "http", "method": method, "path": case.path, "raw_path": case.path.encode(), "headers": headers,
        "client": (case.address, 1234) if case.address else None, "scheme": "http",
    }  # fmt: skip
    waiting, sent = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive():
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop()

    async def send(event):
        sent.append(event)

    in_line = runtime.fleet.line.waiting
    with new_calls(here.fake) as seen:
        task = asyncio.ensure_future(GatewayConsumer(runtime)(scope, receive, send))
        async with asyncio.timeout(PATIENCE):
            while not task.done() and runtime.fleet.line.waiting == in_line:
                await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            return None, "waits", False
        await task
    head = sent[0]
    return head["status"], dict(head["headers"]).get(b"x-gateway-error", b"").decode(), bool(seen)


def chosen_route(case):
    methods, _ = find(case.path.encode())
    return next(iter(methods.values())) if methods else None


async def check(case, here):
    runtime, row, right, previous = runtime_of(case, here)
    key = {"right": right, "none": None, "wrong": new_key()[1], "previous": previous}[case.credential]
    question = Question(
        address=parse_address(case.address or ""), path=case.path.encode(),
        method="PATCH" if case.wrong_method else "", model=case.model,
        key_id=row.id if case.credential in ("right", "previous") else None,
        is_without_key=key is None, secret=key or b"",
    )  # fmt: skip
    held = dict(runtime.limits.memory.held)
    told = await explain(question, world_in(runtime))
    for_owner = await explain(dataclasses.replace(question, for_operator=False), world_in(runtime))
    assert (for_owner.status, for_owner.code, for_owner.cause) == (told.status, told.code, told.cause)
    # Asking has changed nothing.
    assert runtime.limits.memory.held == held
    assert runtime.snapshot.take_hits() == {}
    assert not runtime.worker_reports._refusals
    in_flight = {state.name: state.total_in_flight for state in runtime.fleet.states.values()}

    status, code, was_sent = await called(case, here, runtime, key)
    route = chosen_route(case)
    waits = any(step.verdict is Verdict.WAITS for step in told.steps)
    happened = (200, "") if was_sent else (status, code)
    expected = (None, "waits") if told.status is None and waits else (told.status, told.code)
    assert expected == happened, told
    if expected == (200, "") and route.kind in (Kind.GENERATION, Kind.EMBEDDING, Kind.SHOW):
        assert was_sent
        assert told.backend
    if told.code and runtime.worker_reports._refusals:
        assert [counted for _, counted, _ in runtime.worker_reports._refusals] in ([told.cause], [told.code])
    assert in_flight == {state.name: state.total_in_flight for state in runtime.fleet.states.values()}
    return told


seen_codes = Counter()


# So many examples collect what earlier tests of the process left unclosed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(case=case())
def test_what_is_explained_is_what_happens(here, case):
    told = here.runner.run(check(case, here))
    event(f"{told.status} {told.cause or told.code}")
    seen_codes[told.cause or told.status] += 1


def test_the_configurations_met_what_there_is_to_meet():
    """Else the property above would show less than it says."""
    print(dict(seen_codes))
    expected = {200, "ip_denied", "key_ip_denied", "missing_key", "unknown_key", "limit_requests", "no_backend"}
    assert expected <= seen_codes.keys(), expected - seen_codes.keys()


LIMIT = ("default", None, None, None)
FINE = {
    "fields": {"id": 1, "user_id": 1}, "credential": "right", "overlap": SOON, "ip_rules": [], "address": "10.0.0.5",
    "aliases": (), "defaults": {}, "policies": (), "limits": [], "used": 0, "prices": True, "line_length": 5,
    "backends": [SimpleNamespace(number=1, has=list(INSTALLED), warm=[], is_up=True, enabled=True, remote=False,
                                 is_broken=False, slots=1, taken=0)],
    "draining": False, "throttled": False, "path": "/api/chat", "wrong_method": False, "model": "llama3.2",
}  # fmt: skip
BUSY = [SimpleNamespace(**{**vars(FINE["backends"][0]), "taken": 1})]
RARE = {
    "nothing in the way": ({}, 200, ""),
    "no place in line": ({"backends": BUSY, "line_length": 0}, 503, "line_full"),
    "a place in line": ({"backends": BUSY}, None, ""),
    "a budget": ({"limits": [(*LIMIT, limit(metric="cost", amount=1))]}, 429, "budget_cost"),
    "calls at a time": (
        {"limits": [(*LIMIT, limit(metric="concurrent", window="none", amount=1))], "used": 1}, 429, "limit_concurrent"
    ),
    "throttled": ({"credential": "wrong", "throttled": True}, 429, "too_many_failures"),
    "a network that needs no key": (
        {"credential": "none", "ip_rules": [IPRuleRow("10.0.0.0/8", "allow", acts_as_id=1)]}, 200, ""
    ),
    "what a network may act as is off": (
        {"credential": "none", "fields": {"id": 1, "enabled": False},
         "ip_rules": [IPRuleRow("10.0.0.0/8", "allow", acts_as_id=1)]}, 401, "missing_key"
    ),
    "cloud": ({"model": "qwen3:480b-cloud"}, 404, "model_not_allowed"),
    "a caller without an address": ({"address": None, "ip_rules": [IPRuleRow("10.0.0.0/8", "deny")]}, 403, "ip_denied"),
}  # fmt: skip


@pytest.mark.parametrize("name", RARE)
def test_what_is_met_rarely(here, name):
    changes, status, code = RARE[name]
    told = here.runner.run(check(SimpleNamespace(**{**FINE, **changes}), here))
    assert (told.status, told.code) == (status, code)


def test_no_answer_holds_a_secret(here):
    runtime, row, key, _ = runtime_of(SimpleNamespace(**FINE), here)
    question = Question(address=None, model="llama3.2", key_id=row.id, secret=key)
    told = here.runner.run(explain(question, world_in(runtime)))
    secret = key.decode()[13:]
    assert secret not in repr(question)
    assert secret not in repr(told)


def test_an_owner_is_told_nothing_of_others(here):
    """Neither networks of the operator, nor backends and how busy they are."""
    rules = [IPRuleRow("10.0.0.0/8", "allow"), IPRuleRow("192.0.2.0/24", "allow", acts_as_id=1)]
    runtime, row, _, _ = runtime_of(SimpleNamespace(**{**FINE, "ip_rules": rules}), here)
    for question in (
        Question(address=parse_address("10.0.0.5"), model="llama3.2", key_id=row.id, for_operator=False),
        Question(address=parse_address("192.0.2.1"), model="llama3.2", is_without_key=True, for_operator=False),
    ):
        steps = repr(here.runner.run(explain(question, world_in(runtime))).steps)
        assert not any(word in steps for word in ("10.0.0.0/8", "192.0.2.0/24", "b1", "slots taken"))


@pytest.mark.parametrize("visible", [frozenset(), frozenset({1})])
def test_t1_whose_key_a_place_stands_for_is_told_to_who_may_know_it(here, visible):
    rules = [IPRuleRow("192.0.2.0/24", "allow", acts_as_id=1), IPRuleRow("192.0.2.9/32", "deny", key_id=1)]
    runtime, row, _, _ = runtime_of(SimpleNamespace(**{**FINE, "ip_rules": rules}), here)
    question = Question(
        address=parse_address("192.0.2.1"), model="llama3.2", is_without_key=True, for_operator=False,
        acting_keys=visible,
    )  # fmt: skip
    told = here.runner.run(explain(question, world_in(runtime)))
    assert row.id == 1
    assert (row.prefix in repr(told)) is bool(visible)
    assert ("192.0.2.9" in repr(told.steps)) is bool(visible)
    assert told.status == (200 if visible else None)
    by_name = {step.name: step.verdict for step in told.steps}
    assert by_name["limits"] == (Verdict.PASSES if visible else Verdict.NOT_ASKED)
