"""The management API of a running gateway: fuzzed, walked by each role, and in agreement with the calls beside it."""

import asyncio
import base64
import json
import math
import os
import re
import secrets
import subprocess
import sys
import time
from datetime import UTC, datetime

import httpx
import pytest

from tenants.keys import ALPHABET, checksum, digest
from tenants.models import ApiKey, AuditEntry, IPRule, Limit, ManagementToken, Membership, Tenant, User
from tenants.models.management_tokens import SCOPES
from tests.live.gateway import PEPPER, ROOT
from tests.no_tls import NO_TLS
from usage.models import DailyUsage, Price

pytestmark = pytest.mark.asyncio(loop_scope="module")

API = "/manage/api/"
TENANTS = ("acme", "other", "third", "fourth", "steady")


def make_token(gateway, user, scopes=tuple(SCOPES), **fields):
    """Its clear text; in the database and with the pepper of the gateway, which are not those of this process."""
    prefix, secret = ("".join(secrets.choice(ALPHABET) for _ in range(length)) for length in (8, 43))
    body = f"ogm_{prefix}_{secret}"
    token = body + checksum(body.encode()).decode()
    gateway.rows(ManagementToken).create(
        user=user, name="test", prefix=prefix, scopes=list(scopes), **fields,
        digest=digest(b"management token " + token.encode(), PEPPER.encode()),
    )  # fmt: skip
    return token


def make_user(gateway, name, tenant="", role="member", **fields):
    user = gateway.rows(User).create(username=name, password="!", email=f"{name}@secret-{name}.example", **fields)
    if tenant:
        gateway.rows(Membership).create(user=user, tenant=gateway.tenant(tenant), role=role)
    return user


@pytest.fixture(scope="module")
def gateway(make_shared_gateway, shared_fake):
    made = make_shared_gateway(CURRENCY="EUR")
    made.config = made.directory / "config.json"
    made.config.write_text(json.dumps({"apiKeys": [], "rateLimit": {"enabled": False}}))
    made.env["CONFIG_FILE"] = str(made.config)
    made.make_backend(shared_fake.url)
    for name in TENANTS:
        made.tenant(name)
    made.users = {
        "root": make_user(made, "root", is_staff=True, is_superuser=True),
        "staff": make_user(made, "staff", is_staff=True),
        "stranger": make_user(made, "stranger"),
        "owner": make_user(made, "owner", "acme", "owner"),
        "member": make_user(made, "member", "acme"),
        "viewer": make_user(made, "viewer", "acme", "viewer"),
        "foreigner": make_user(made, "foreigner", "other", "owner"),
        "steady": make_user(made, "steady-owner", "steady", "owner"),
    }
    made.tokens = {name: make_token(made, user) for name, user in made.users.items()}
    made.start()
    return made


def client_of(gateway, credential, **options):
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    return httpx.AsyncClient(
        base_url=gateway.url, headers=headers, trust_env=False, verify=NO_TLS, timeout=30, **options
    )


# A key about itself.


def from_headers(headers):
    """What `x-ratelimit-…` say, by metric."""
    return {
        metric: {
            part: int(value.rstrip("s"))
            for part in ("limit", "remaining", "reset")
            if (value := headers.get(f"x-ratelimit-{part}-{metric}")) is not None
        }
        for metric in ("requests", "tokens", "cost", "concurrent")
    }


def from_answer(limits, units):
    """The same of the answer to `/key`, money in nano-units again."""
    return {
        limit["metric"]: {
            "limit": units(limit, "amount"),
            "remaining": units(limit, "left"),
            **({} if limit["resets_in_seconds"] is None else {"reset": limit["resets_in_seconds"]}),
        }
        for limit in limits
    }


def units(limit, part):
    return round(float(limit[part]) * 10**9) if limit["metric"] == "cost" else limit[part]


async def test_what_a_key_is_told_is_what_the_headers_of_its_calls_say(gateway, shared_fake):
    row, key = gateway.make_key("limited", tenant="third")
    gateway.rows(Price).create(
        model="llama3.2:latest", input_nano=10**9, output_nano=10**9, valid_from=datetime(2020, 1, 1, tzinfo=UTC)
    )
    for metric, window, amount in (
        ("requests", "day", 100), ("tokens", "month", 100_000), ("cost", "day", 3 * 10**9), ("concurrent", "none", 5),
    ):  # fmt: skip
        gateway.rows(Limit).create(scope="key", key=row, metric=metric, window=window, amount=amount)
    # The rules act in the order they were written in: where a key of later is known, so are these.
    await gateway.until_it_lists("llama3.2", key=gateway.make_key("made last", tenant="third")[1])
    shared_fake.faults(path="/api/chat", model="llama3.2", hang_after_chunks=1)
    body = {"model": "llama3.2", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    began = time.monotonic()
    async with client_of(gateway, key) as client, client.stream("POST", "/api/chat", json=body) as call:
        assert call.status_code == 200
        told = from_headers(call.headers)
        about = (await client.get(API + "key")).json()
        took = math.ceil(time.monotonic() - began)
    print(f"between the two: {took} s")
    said = from_answer(about["limits"], units)
    for metric, parts in told.items():
        reset, also = parts.pop("reset", 0), said[metric].pop("reset", 0)
        assert said[metric] == parts, metric
        assert 0 <= reset - also <= took + 1, metric
    assert {limit["whose"] for limit in about["limits"]} == {f"key {row.prefix}"}
    assert about["limits"][2]["amount"] == "3"
    assert (about["prefix"], about["tenant"], about["currency"], about["note"]) == (row.prefix, "third", "EUR", "")
    # Of a call that has ended: what it used, exactly.
    async with client_of(gateway, key) as client:
        async with asyncio.timeout(20):
            while True:
                after = {limit["metric"]: limit for limit in (await client.get(API + "key")).json()["limits"]}
                if after["concurrent"]["left"] == 5:
                    break
                await asyncio.sleep(0.05)
    assert (after["requests"]["used"], after["requests"]["left"]) == (1, 99)
    assert datetime.fromisoformat(after["requests"]["resets_at"]).tzinfo is not None


async def test_an_api_key_is_taken_in_each_form_that_calls_take(gateway):
    _, key = gateway.make_key("forms", tenant="third")
    await gateway.until_it_lists("llama3.2", key=key)
    forms = (
        {"authorization": f"Bearer {key}"},
        {"authorization": key},
        {"authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()},
        {"x-api-key": key},
    )
    async with client_of(gateway, "") as client:
        for headers in forms:
            assert (await client.get(API + "key", headers=headers)).json()["name"] == "forms", headers
        for headers in (
            {},
            {"authorization": f"Bearer {gateway.tokens['root']}"},
            {"authorization": f"Bearer {key}", "x-api-key": gateway.tokens["root"]},
            {"cookie": "sessionid=x"},
        ):
            answer = await client.get(API + "key", headers=headers)
            assert answer.status_code == 401, headers
            assert answer.json()["error"]["code"] in ("missing_token", "invalid_key", "invalid_token")
        # And a token is no key.
        answer = await client.get("/api/tags", headers={"authorization": f"Bearer {gateway.tokens['root']}"})
        assert answer.status_code == 401


async def test_a_place_in_the_network_is_no_key_here(gateway):
    row, _ = gateway.make_key("acting", tenant="third")
    rule = gateway.rows(IPRule).create(cidr="127.0.0.1/32", action="allow", acts_as=row)
    try:
        async with client_of(gateway, "") as client:
            async with asyncio.timeout(20):
                while (await client.get("/api/tags")).status_code != 200:
                    await asyncio.sleep(0.05)
            assert (await client.get(API + "key")).status_code == 401
            assert (await client.get(API + "key", headers={"authorization": "not-needed"})).status_code == 401
            assert (await client.get(API + "tenants")).status_code == 401
    finally:
        rule.delete()


async def test_a_change_by_the_api_holds_within_a_second(gateway):
    async with client_of(gateway, gateway.tokens["root"]) as client:
        made = (await client.post(API + "keys", json={"tenant": "third", "name": "live"})).json()
        async with client_of(gateway, made["key"]) as caller, asyncio.timeout(20):
            began = time.monotonic()
            while (await caller.get("/api/tags")).status_code != 200:
                await asyncio.sleep(0.01)
            in_force = time.monotonic() - began
            await client.post(f"{API}keys/{made['prefix']}/revoke")
            began = time.monotonic()
            while (await caller.get("/api/tags")).status_code != 401:
                await asyncio.sleep(0.01)
            print(f"in force after {in_force:.3f} s, revoked after {time.monotonic() - began:.3f} s")


# /config/…


async def test_config_paths_are_for_tokens_of_superusers_and_audited(gateway):
    async with client_of(gateway, "") as client:
        for path in ("/config/new-key", "/config/reload"):
            assert (await client.get(path)).status_code == 401
            for name in ("staff", "owner", "member", "stranger"):
                headers = {"authorization": f"Bearer {gateway.tokens[name]}"}
                assert (await client.get(path, headers=headers)).status_code == 403, name
            reader = make_token(gateway, gateway.users["root"], ["read"])
            answer = await client.get(path, headers={"authorization": f"Bearer {reader}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")
            assert (await client.put(path)).status_code == 405
    async with client_of(gateway, gateway.tokens["root"]) as client:
        made = await client.get("/config/new-key")
        key = made.json()["key"]
        assert made.json().keys() == {"key"}
        await gateway.until_it_lists("llama3.2", key=key)
        row = gateway.rows(ApiKey).get(prefix=key[4:12])
        assert (row.tenant.name, row.user, row.created_by) == ("default", None, gateway.users["root"])
        entry = gateway.rows(AuditEntry).filter(object_repr__contains=row.prefix).get()
        assert (entry.actor, entry.via, entry.cid) == (gateway.users["root"], "api", made.headers["x-request-id"])
        assert key not in str(entry.changes)


async def test_reload_imports_the_mounted_file_again_and_says_what_changed(gateway):
    their_key = "ahP7DieD7rNpTUa6No--iJpOaXY3TDK8dIjKg0cp-hI="
    async with client_of(gateway, gateway.tokens["root"]) as client:
        before = (await client.get("/config/reload")).json()
        assert (before["file"], before["changed"]) == (str(gateway.config), False)
        gateway.config.write_text(json.dumps({"apiKeys": [their_key], "rateLimit": {"enabled": False}}))
        after = (await client.get("/config/reload")).json()
        assert after["changed"] is True
        assert "imported" in after["fields"]["apiKeys"][0]
        assert after["revision"] > before["revision"]
        await gateway.until_it_lists("llama3.2", key=their_key)
        gateway.config.write_text("{ not json")
        answer = await client.get("/config/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "configuration_invalid")
        await gateway.until_it_lists("llama3.2", key=their_key)
    gateway.config.write_text("{}")
    entries = gateway.rows(AuditEntry).filter(object_repr="/config/reload")
    assert [(entry.actor, entry.via) for entry in entries] == [(gateway.users["root"], "api")] * 2


# Walked by each role, and by a second tenant.

# What each may see of the two tenants, by the marks that their rows bear.
SEEN_BY = {
    "stranger": set(),
    "staff": set(),
    "member": {"acme", "member"},
    "viewer": {"acme", "viewer", "acme-usage"},
    "owner": {"acme", "member", "viewer", "owner", "acme-usage"},
    "foreigner": {"other", "foreigner", "other-usage"},
}
MARKS = {"acme", "other", "member", "viewer", "owner", "foreigner", "acme-usage", "other-usage"}


@pytest.fixture(scope="module")
def rows(gateway):
    """Rows of both tenants, whose names say whose they are."""
    owners = {"acme": "member", "other": "foreigner"}
    for tenant, user in owners.items():
        home = gateway.tenant(tenant)
        mine, _ = gateway.make_key(f"mark-{user}", tenant=tenant, user=gateway.users[user])
        service, _ = gateway.make_key(f"mark-owner-{tenant}", tenant=tenant)
        for key in (mine, service):
            gateway.rows(Limit).create(scope="key", key=key, metric="requests", window="day", amount=77_001)
        gateway.rows(Limit).create(scope="tenant", tenant=home, metric="requests", window="day", amount=77_002)
        gateway.rows(IPRule).create(cidr="10.0.0.0/8", action="allow", tenant=home, note=f"mark-rule-{tenant}")
        gateway.rows(DailyUsage).create(
            day=datetime.now().date(), tenant=home, api_key=service, model=f"mark-{tenant}-usage", requests=3
        )
    return owners


def paths_of(document):
    """(path, of one) that answer GET, with the parameters of their one row left open."""
    return [path for path, methods in document["paths"].items() if "get" in methods and not path.endswith("/key")]


async def test_t1_each_role_sees_its_own_and_no_foreign_datum(gateway, rows):
    async with client_of(gateway, "") as client:
        document = (await client.get(API + "openapi.json")).json()
    everything = {}
    async with client_of(gateway, gateway.tokens["root"]) as client:
        for path in paths_of(document):
            if "{" not in path:
                everything[path] = (await client.get(path)).json().get("items", [])
    identities = {path: [row.get("id", row.get("prefix")) for row in items] for path, items in everything.items()}
    looked_at = 0
    for role, expected in SEEN_BY.items():
        async with client_of(gateway, gateway.tokens[role]) as client:
            text = []
            for path in paths_of(document):
                collection, _, parameter = path.partition("/{")
                for identity in identities[collection] if parameter else [None]:
                    answer = await client.get(f"{collection}/{identity}" if parameter else path)
                    assert answer.status_code in (200, 403, 404), (path, answer.text)
                    if answer.status_code != 200:
                        assert answer.json().keys() == {"error", "request_id"}
                    else:
                        text.append(answer.text)
                    looked_at += 1
            for by in ("model", "key"):
                text.append((await client.get(API + "usage", params={"by": by})).text)
        seen = "\n".join(text)
        assert_sees(role, expected, seen)
    print(f"looked at {looked_at} answers")
    assert looked_at > 200


def assert_sees(role, expected, seen):
    tenants = {name for name in ("acme", "other") if re.search(rf'"(?:name|tenant)":"{name}"', seen)}
    people = {name for name in ("member", "viewer", "owner", "foreigner") if f"secret-{name}.example" in seen}
    usage = {mark for mark in ("acme-usage", "other-usage") if f"mark-{mark}" in seen}
    # Everybody sees their own account; members and viewers no other.
    assert tenants | people | usage == expected, role
    keys = set(re.findall(r"mark-[a-z-]+(?=\")", seen)) - {"mark-acme-usage", "mark-other-usage"}
    allowed = {
        "owner": {"mark-member", "mark-owner-acme", "mark-rule-acme"},
        "foreigner": {"mark-foreigner", "mark-owner-other", "mark-rule-other"},
        "member": {"mark-member"},
    }
    # The usage by key names keys of whose tenant one sees the usage.
    allowed["viewer"] = {"mark-member", "mark-owner-acme"}
    assert keys <= allowed.get(role, set()), role


async def test_t1_no_role_changes_what_is_not_theirs(gateway, rows):
    """Each PATCH, POST to one and DELETE of the document, at every row of the other tenant."""
    async with client_of(gateway, "") as client:
        document = (await client.get(API + "openapi.json")).json()
    theirs = {
        "tenants": [gateway.tenant("acme").pk],
        "users": [gateway.users[name].pk for name in ("root", "staff", "owner", "member")],
        "memberships": list(gateway.rows(Membership).filter(tenant__name="acme").values_list("pk", flat=True)),
        "limits": list(gateway.rows(Limit).filter(amount__in=(77_001, 77_002)).exclude(
            key__tenant__name="other").exclude(tenant__name="other").values_list("pk", flat=True)),
        "ip-rules": list(gateway.rows(IPRule).filter(note="mark-rule-acme").values_list("pk", flat=True)),
        "keys": list(gateway.rows(ApiKey).filter(tenant__name="acme").values_list("prefix", flat=True)),
    }  # fmt: skip
    tables = (Tenant, User, Membership, Limit, IPRule, ApiKey)
    before = [list(gateway.rows(table).order_by("pk").values()) for table in tables]
    tried = 0
    for role in ("stranger", "viewer", "foreigner", "staff"):
        async with client_of(gateway, gateway.tokens[role]) as client:
            for path, methods in document["paths"].items():
                if "{" not in path:
                    continue
                collection = path.removeprefix(API).partition("/")[0]
                for identity in theirs.get(collection, [1]):
                    for method in methods.keys() - {"get"}:
                        answer = await client.request(method, re.sub(r"\{.*?\}", str(identity), path), json={})
                        assert answer.status_code in (403, 404), (role, method, path, answer.text)
                        tried += 1
    print(f"tried {tried} requests")
    assert tried > 100
    assert before == [list(gateway.rows(table).order_by("pk").values()) for table in tables]


# What docs/management-api.md prints.


async def test_the_lines_of_the_docs_work_as_they_stand(gateway, tmp_path):
    page = (ROOT / "docs" / "management-api.md").read_text()
    _, key = gateway.make_key("of the docs", tenant="third")
    await gateway.until_it_lists("llama3.2", key=key)
    lines = [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if not block.startswith("export")]
    assert len(lines) >= 6
    environment = {**os.environ, "GATEWAY": gateway.url, "TOKEN": gateway.tokens["root"], "KEY": key}
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-euxo", "pipefail", "-c", "\n".join(lines)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert gateway.rows(ApiKey).get(tenant__name="web").state == "revoked"
    assert gateway.rows(Limit).get(tenant__name="web").amount == 25_500_000_000
    assert gateway.rows(Tenant).filter(name="web").count() == 1


# Fuzzed, last: it leaves the tables full of nonsense.

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,ignored_auth,unsupported_method"
)


@pytest.mark.timeout(400)
async def test_the_document_fuzzed_gives_no_500_and_answers_as_it_says(gateway, tmp_path):
    _, key = gateway.make_key("fuzz", tenant="steady")
    row, _ = gateway.make_key("named by fuzz", tenant="steady")
    await gateway.until_it_lists("llama3.2", key=key)
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "SCHEMATHESIS_HOOKS": "tests.live.fuzz_hooks",
        "PYTHONPATH": str(ROOT),
        "FUZZ_TOKEN": gateway.tokens["root"],
        "FUZZ_KEY": key,
        "FUZZ_TENANT": "steady",
        "FUZZ_PERSON": "steady-owner",
        "FUZZ_PREFIX": row.prefix,
    }
    command = [
        os.path.join(os.path.dirname(sys.executable), "schemathesis"), "--no-color", "run",
        f"{gateway.url}{API}openapi.json", "--checks", CHECKS, "--phases", "fuzzing,stateful", "--max-examples", "6",
        "--workers", "1", "--seed", "20260310", "--generation-database", "none", "--continue-on-failure",
        "--suppress-health-check", "all",
        "--request-timeout", "60",
    ]  # fmt: skip
    began = time.monotonic()
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    print(done.stdout[-3000:], f"{time.monotonic() - began:.1f} s")
    assert done.returncode == 0, done.stdout
    generated = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert int(generated[1]) > 300
    assert generated[1] == generated[2]
    assert int(re.search(r"Tested: (\d+)", done.stdout)[1]) > 50
    assert "Traceback" not in gateway.log()
