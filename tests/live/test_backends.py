"""Backends that fail or attack, seen from the client and from the record (B2-B9, B13, B14)."""

import asyncio
import json
import socket

import psutil
import pytest
import pytest_asyncio

from proxy.fake_ollama.faults import NASTY_CONTENT
from tests.live.hostile import HostileBackend
from tests.live.seen import calls, new_calls

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIRST_BYTE, GAP, TOTAL = 2.0, 2.0, 5.0
CALLS = ("/api/chat", "/api/generate", "/api/embed", "/api/show")


def chat(**fields):
    return {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], **fields}


@pytest.fixture(scope="module")
def proxy_trap():
    """What the environment names as proxy. Nobody may come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile():
    async with HostileBackend("evil") as backend:
        yield backend


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["wire", "httpx"])
async def gateway(request, make_shared_gateway, shared_fake, hostile, proxy_trap, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / ".netrc").write_text("machine 127.0.0.1 login bob password netrc-secret\n")
    trap = "http://{}:{}".format(*proxy_trap.getsockname())
    names = ("http_proxy", "https_proxy", "all_proxy")
    proxies = {name: trap for upper in names for name in (upper, upper.upper())}
    made = make_shared_gateway(
        BACKEND_FIRST_BYTE_SECONDS=str(FIRST_BYTE),
        BACKEND_GAP_SECONDS=str(GAP),
        CALL_TOTAL_SECONDS=str(TOTAL),
        HOME=str(home),
        NETRC=str(home / ".netrc"),
        NO_PROXY="",
        no_proxy="",
        **proxies,
    )
    made.make_backend(shared_fake.url, transport=request.param)
    made.make_backend(hostile.url, "evil", transport=request.param)
    made.key_row, made.key = made.make_key()
    yield await asyncio.to_thread(made.start)
    made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def fake(shared_fake):
    shared_fake.clear_faults()
    yield shared_fake
    shared_fake.clear_faults()
    shared_fake.release()


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway):
    async with gateway.client(gateway.key) as made:
        yield made


def fail_once(fake, path=CALLS, **fault):
    """A fault for the next call. Probes come all the time and must not use it up."""
    fake.faults(path=path, **fault, times=1)


def lines_of(answer):
    """Every line of a stream; each must be JSON of its own."""
    text = answer.content.decode()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def assert_tells_nothing(text, *backends):
    """No address, path or name of a backend's machine."""
    for secret in ("127.0.0.1", "10.9.8.7", "/root", ".ollama", "bob", *(str(backend.port) for backend in backends)):
        assert secret not in text, text


async def assert_works(client):
    answer = await client.post("/api/chat", json=chat())
    assert (answer.status_code, lines_of(answer)[-1]["done"]) == (200, True)


# B3: streams that break off


@pytest.mark.parametrize("cut_with", ["fin", "rst"])
async def test_b3_cut_anywhere_the_client_sees_an_error_and_the_record_says_failed(gateway, fake, client, cut_with):
    ids, whole = {}, []
    for size in [*range(0, 60, 7), *range(60, 1100, 41)]:
        fail_once(fake, tokens=5, cut_after_bytes=size, cut_counts_body_only=True, cut_with=cut_with)
        answer = await client.post("/api/chat", json=chat())
        assert answer.status_code == 200
        lines = lines_of(answer)
        if lines[-1].get("done"):
            # Only the last chunk, which says that no more follow, was lost: the answer is whole.
            whole.append(size)
            continue
        assert set(lines[-1]) == {"error"}, lines
        assert_tells_nothing(lines[-1]["error"], fake)
        assert not any(line.get("done") for line in lines[:-1])
        ids[answer.headers["x-request-id"]] = len(lines) - 1
    assert len(ids) > 20
    assert all(size > 700 for size in whole)
    for record in await gateway.wait_for_records(len(ids), id__in=list(ids)):
        seen = ids[record.id.hex]
        assert (record.outcome, record.status, record.error) == ("failed", 200, "broken_stream")
        assert record.estimated
        assert record.prompt_tokens > 0
        # What was cut in mid-line was generated, too.
        assert record.completion_tokens in (seen, seen + 1)
    await assert_works(client)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"eof_after_chunks": 2}, "incomplete"),
        ({"repetition_stop_after": 2}, "incomplete"),
        ({"eof_after_chunks": 0}, "incomplete"),
        ({"reset_after_chunks": 2}, "broken_stream"),
        ({"reset_mid_chunk": 2}, "broken_stream"),
        ({"truncate_chunk": 2}, "broken_stream"),
        ({"error_after_chunks": 2}, "backend_error"),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_b3_no_end_is_never_a_clean_end(gateway, fake, client, fault, error, path):
    fail_once(fake, **fault)
    answer = await client.post(path, json=chat(prompt="hi") if path.endswith("generate") else chat())
    lines = lines_of(answer)
    assert set(lines[-1]) == {"error"}
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.error, record.estimated) == ("failed", error, True)
    produced = next(iter(fault.values()))
    assert produced <= record.completion_tokens <= produced + 1
    assert len(lines) == produced + 1


@pytest.mark.parametrize("cut_with", ["fin", "rst"])
async def test_b3_a_unary_answer_that_breaks_off_is_502(gateway, fake, client, cut_with):
    for size in (0, 1, 50, 150):
        fail_once(fake, cut_after_bytes=size, cut_counts_body_only=True, cut_with=cut_with)
        answer = await client.post("/api/chat", json=chat(stream=False))
        assert answer.status_code == 502
        assert_tells_nothing(answer.text, fake)
        record = await gateway.record(answer.headers["x-request-id"])
        assert (record.outcome, record.status, record.estimated) == ("failed", 502, True)
        assert record.prompt_tokens > 0


async def test_b3_an_unstreamed_answer_without_its_end_is_told_apart_in_the_record(gateway, fake, client):
    fail_once(fake, repetition_stop_after=3)
    answer = await client.post("/api/chat", json=chat(stream=False))
    assert answer.json()["done"] is False
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.error, record.estimated) == ("failed", "incomplete", True)
    assert record.completion_tokens > 0


# B2, B5, B7: answers that are none


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "fault",
    [
        {"reset_before_headers": True},
        {"close_before_headers": True},
        {"garbage_status_line": "NONSENSE"},
        {"http_status": 999},
        {"http_status": 600},
        {"http_status": 204},
        {"early_responses": 50},
        {"early_responses": 50, "early_status": 100},
        {"header_bomb": 100},
        {"both_framings": True},
        {"switching_protocols": True},
        {"redirect": 307, "location": "http://10.9.8.7/root/.ollama"},
        {"raw": "SSH-2.0-OpenSSH_9.2 10.9.8.7\r\n"},
        {"raw": ""},
        {"raw": "HTTP/1.1 200 OK\r\n\r\n"},
        {"content_type": "text/html"},
        {"content_type": "application/octet-stream"},
        {"gzip": True},
        {"status": 500, "error": "open /root/.ollama/x: dial tcp 10.9.8.7:1 as bob@corp"},
        {"status": 502, "error": "10.9.8.7", "error_as_json": True},
        {"load_error_500": True},
    ],
    ids=lambda fault: " ".join(f"{name}={str(value)[:12]}" for name, value in fault.items()),
)
async def test_b5_an_answer_we_may_not_pass_on_is_502_once(gateway, fake, client, fault, stream):
    fail_once(fake, **fault, path="/api/chat")
    with new_calls(fake) as seen:
        answer = await client.post("/api/chat", json=chat(stream=stream))
    assert answer.status_code == 502
    assert_tells_nothing(answer.text + str(answer.headers), fake)
    assert answer.json()["error"]
    assert len(seen) == 1, "it may have begun: nothing is sent a second time"
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.status, record.attempts) == ("failed", 502, 1)
    await assert_works(client)


async def test_b7_a_decompression_bomb_is_refused_unexpanded(gateway, fake, client):
    before = psutil.Process(gateway.process.pid).memory_info().rss
    fail_once(fake, gzip=True, gzip_bomb_mb=64)
    assert (await client.post("/api/chat", json=chat(stream=False))).status_code == 502
    assert psutil.Process(gateway.process.pid).memory_info().rss - before < 32 << 20
    assert fake.calls[-1].header("accept-encoding") == "identity"


@pytest.mark.parametrize(("status", "error"), [(400, "no such option"), (429, "slow down"), (413, "too long")])
async def test_b9_refusals_of_the_callers_fault_pass_with_their_text(gateway, fake, client, status, error):
    fake.faults(
        path="/api/chat", status=status, error=f"{error} (/root/.ollama/x, 10.9.8.7:1, bob@corp.example)", times=1
    )
    answer = await client.post("/api/chat", json=chat())
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)
    assert_tells_nothing(answer.text, fake)
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.status) == ("failed", status)


async def test_b9_an_error_in_mid_stream_is_told_without_the_machine_and_logged_with_it(gateway, fake, client):
    fail_once(fake, error_after_chunks=2, error="open /root/.ollama/x: dial tcp 10.9.8.7:1")
    answer = await client.post("/api/chat", json=chat())
    lines = lines_of(answer)
    assert len(lines) == 3
    assert lines[-1]["error"].startswith("open ")
    assert_tells_nothing(answer.text, fake)
    assert "/root/.ollama/x: dial tcp 10.9.8.7:1" in gateway.log()


# B4: deadlines


async def test_b4_each_wait_has_a_deadline_of_its_own(gateway, fake, client):
    fail_once(fake, path="/api/chat", model="llama3.2", hang_before_headers=True)
    fail_once(fake, path="/api/generate", hang_after_chunks=2)
    fail_once(fake, path="/api/embed", hang_before_headers=True)
    fail_once(fake, model="qwen3:8b", infinite=True, gap=0.2)
    began = asyncio.get_running_loop().time()

    async def timed(path, body):
        answer = await client.post(path, json=body)
        return answer, asyncio.get_running_loop().time() - began

    results = await asyncio.gather(
        timed("/api/chat", chat()),
        timed("/api/generate", {"model": "llama3.2", "prompt": "x"}),
        timed("/api/embed", {"model": "nomic-embed-text", "input": "x"}),
        timed("/api/chat", chat(model="qwen3:8b")),
    )
    expected = [
        (504, "first_byte_timeout", FIRST_BYTE, 0),
        (200, "gap_timeout", GAP, 2),
        (504, "first_byte_timeout", FIRST_BYTE, 0),
        (200, "total_timeout", TOTAL, 10),
    ]
    for (answer, took), (status, error, deadline, tokens) in zip(results, expected, strict=True):
        print(f"{error}: {took:.2f} s, deadline {deadline} s")
        assert answer.status_code == status
        assert "error" in json.loads(answer.text.splitlines()[-1])
        assert deadline <= took < deadline + 4
        record = await gateway.record(answer.headers["x-request-id"])
        assert (record.outcome, record.error, record.estimated) == ("timeout", error, True)
        assert record.completion_tokens >= tokens
    await fake.saw("disconnect", 4)
    await fake.saw_idle()


# B6: too much, too long, too small


async def test_b6_a_stream_without_end_is_cut_soon_after_its_cap(gateway, fake, client):
    fail_once(fake, infinite=True)
    answer = await client.post("/api/chat", json=chat(options={"num_predict": 50}))
    lines = lines_of(answer)
    assert set(lines[-1]) == {"error"}
    assert 50 < len(lines) < 1500
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.estimated) == ("failed", True)
    assert record.completion_tokens >= len(lines) - 1


async def test_b6_a_line_of_200_mb_is_cut_at_the_cap_and_fills_no_memory(gateway, hostile, client):
    process = psutil.Process(gateway.process.pid)
    sizes = []
    for _ in range(4):
        hostile.answer_with(b'{"x":"', *[b"x" * 65536] * 3200)
        answer = await client.post("/api/chat", json=chat(model="evil"))
        sizes.append(process.memory_info().rss)
    # The first ones leave the allocator with room for a line of the largest size; the others must not add to it.
    grown = sizes[-1] - sizes[1]
    print(f"grown by {grown >> 10} KiB after {hostile.sent >> 20} MiB")
    assert [set(line) for line in lines_of(answer)] == [{"error"}]
    assert hostile.sent < 40 << 20, "it was cut, not swallowed"
    assert grown < 64 << 20, "600 MB of such lines came after"
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.error) == ("failed", "broken_stream")


async def test_b6_lines_below_the_cap_pass_whole(gateway, fake, client):
    fail_once(fake, giant_line_mb=4)
    answer = await client.post("/api/chat", json=chat())
    assert len(lines_of(answer)[0]["message"]["content"]) == 4_000_000
    fail_once(fake, final_context=100_000)
    answer = await client.post("/api/generate", json={"model": "llama3.2", "prompt": "x"})
    assert len(lines_of(answer)[-1]["context"]) == 100_000
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.estimated) == ("ok", False)


async def test_b6_one_byte_per_packet_changes_nothing(gateway, fake, client):
    fail_once(fake, trickle=True, tokens=8)
    answer = await client.post("/api/chat", json=chat())
    assert len(lines_of(answer)) == 9
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.completion_tokens, record.estimated) == ("ok", 8, False)


# B8: odd bytes


@pytest.mark.parametrize("fault", [{}, {"write_sizes": [1]}, {"write_sizes": [7, 3, 64]}, {"coalesce": 3}])
async def test_b8_content_that_looks_like_framing_passes_unchanged(gateway, fake, client, fault):
    fail_once(fake, nasty_content=True, **fault)
    answer = await client.post("/api/chat", json=chat())
    assert [line["message"]["content"] for line in lines_of(answer)[:-1]] == list(NASTY_CONTENT)
    record = await gateway.record(answer.headers["x-request-id"])
    assert (record.outcome, record.estimated, record.completion_tokens) == ("ok", False, len(NASTY_CONTENT))


async def test_b8_the_bytes_of_a_stream_are_the_backends(gateway, hostile, client):
    stream = (
        '{"message":{"content":"raw \u0085 \u2028 \u2029 \x7f é 😀"},"done":false}\r\n\n \n'
        '  {"message":{"content":"\\ndata: [DONE]\\n\\n{\\"done\\":true}"},"done":false}\n'
        '{"error_of_another_name":"/root/x","done":false}\n'
        '{"message":{"content":""},"done":true,"prompt_eval_count":7,"eval_count":5}\r\n\n'
    ).encode()
    for size in (1, 2, 3, 50, 9999):
        hostile.answer_with(*(stream[at : at + size] for at in range(0, len(stream), size)))
        answer = await client.post("/api/chat", json=chat(model="evil"))
        assert answer.content == stream
        record = await gateway.record(answer.headers["x-request-id"])
        assert (record.outcome, record.prompt_tokens, record.completion_tokens) == ("ok", 7, 5)
        assert not record.estimated


# U4 seen live


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"usage": {"eval_count": -5}}, (True, 5, "odd_usage")),
        ({"usage": {"eval_count": 10**15}}, (True, 5, "odd_usage")),
        ({"no_usage": True}, (True, 5, "")),
        ({"usage_drop": ["eval_count"]}, (True, 5, "")),
        ({"repeat_final": 3}, (False, 5, "")),
    ],
)
async def test_u4_reports_that_lie_or_are_missing_do_not_decide(gateway, fake, client, fault, expected):
    fail_once(fake, tokens=5, **fault)
    answer = await client.post("/api/chat", json=chat())
    record = await gateway.record(answer.headers["x-request-id"])
    assert record.outcome == "ok"
    assert (record.estimated, record.completion_tokens, record.error) == expected
    assert record.prompt_tokens > 0


# B13: stale connections


async def test_b13_backends_that_close_idle_connections_cost_no_call(gateway, fake, client):
    fake.faults(path="/api/chat", close_idle_after_ms=1)
    with new_calls(fake) as seen:
        for _ in range(40):
            answer = await client.post("/api/chat", json=chat(options={"num_predict": 1}))
            assert answer.status_code == 200
            used = calls(fake)[-1].connection
            # Closed a moment ago: whether the gateway has been told already is left to chance.
            await fake.log.until(lambda used=used: used not in {open_.number for open_ in fake._connections}, 5)
    assert len(seen) == 40, "each was sent exactly once"
    assert len({call.connection for call in seen}) == 40


async def test_b13_connections_reset_while_idle_cost_no_call(gateway, fake, client):
    for _ in range(10):
        await assert_works(client)
        await fake.switch(drop_connections=True)


# B14: where the gateway connects to


async def test_b14_proxies_and_netrc_of_the_environment_are_ignored(gateway, fake, client, proxy_trap):
    await assert_works(client)
    await client.get("/api/tags")
    with pytest.raises(BlockingIOError):
        proxy_trap.accept()
    assert not [call for call in fake.calls if call.header("authorization") or call.header("proxy-authorization")]
    assert "netrc-secret" not in gateway.log()


async def test_b14_a_row_that_no_form_would_take_is_left_out_and_harms_no_other(gateway, fake, client):
    for number, url in enumerate(
        ["http://2852039166:80", "http://169.254.169.254", "file:///etc/passwd", "http://x:99999"]
    ):
        gateway.make_backend(url, f"forbidden {number}")
    gateway.make_backend(fake.url, "broken CA", ca_certificates="é no certificate")
    for _ in range(200):
        if gateway.log().count("is left out") >= 4:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail(gateway.log()[-2000:])
    await assert_works(client)


async def test_p7_a_redirect_is_never_followed(gateway, fake, hostile, client):
    fail_once(fake, path="/api/chat", redirect=307, location=f"{hostile.url}/api/chat")
    before = hostile.requests
    assert (await client.post("/api/chat", json=chat())).status_code == 502
    assert hostile.requests == before


async def test_the_probes_of_this_module_never_count_as_calls(fake):
    assert all(call.path not in ("/api/tags", "/api/ps", "/api/version") for call in calls(fake))
