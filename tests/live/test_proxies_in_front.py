"""deploy/nginx.conf and deploy/Caddyfile, run as they are but for ports and files: streams come through as they are
made, the caller's address is the caller's, large bodies and live pages pass, keys in paths are logged nowhere."""

import asyncio
import hashlib
import json
import re
import shutil
import signal
import ssl
import subprocess
import time

import httpx
import pytest
import pytest_asyncio
import trustme
from websockets.asyncio.client import connect

from tests.live.gateway import ROOT
from tests.live.seen import no_calls
from tests.live.signed_in import make_person, sign_in
from tests.no_tls import NO_TLS
from tests.ports import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEPLOY = ROOT / "deploy"
PATIENCE = 60
NAME = "llm.example"
OTHER_FILES = "".join(f"{name}_temp_path /tmp; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(make_shared_gateway, shared_fake):
    made = make_shared_gateway(
        SITE_URL=f"https://{NAME}", ALLOWED_HOSTS=NAME, TRUSTED_PROXIES="127.0.0.1/32", ACCESS_LOG="True"
    )
    made.make_backend(shared_fake.url)
    _, made.key = made.make_key(may_be_in_path=True)
    _, made.manager = made.make_key("manager", may_manage=True)
    made.session = sign_in(made, make_person(made, "ann", acme="owner"))
    await asyncio.to_thread(made.start)
    return await made.until_it_lists("llama3.2", key=made.key)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(directory with chain.pem and key.pem, what a client trusts)"""
    directory, authority = tmp_path_factory.mktemp("certificate"), trustme.CA()
    issued = authority.issue_cert(NAME)
    (directory / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    (directory / "key.pem").write_bytes(issued.private_key_pem.bytes())
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return directory, trust


def nginx(directory, gateway, port, plain_port, certificates):
    text = (DEPLOY / "nginx.conf").read_text()
    for said, here in (
        ("127.0.0.1:8080", f"127.0.0.1:{gateway.port}"),
        ("listen 443 ", f"listen 127.0.0.1:{port} "),
        ("listen 80;", f"listen 127.0.0.1:{plain_port};"),
        (f"/etc/ssl/{NAME}/", f"{certificates}/"),
    ):
        assert said in text
        text = text.replace(said, here)
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log {directory}/error.log info; user root; events {{ }}\n"
        f"http {{ access_log {directory}/access.log; {OTHER_FILES.replace('/tmp', str(directory))}\n{text}\n}}\n"
    )
    return [
        shutil.which("nginx") or "/usr/sbin/nginx",
        "-e",
        directory / "error.log",
        "-c",
        directory / "nginx.conf",
    ], {}


def caddy(directory, gateway, port, plain_port, certificates):
    text, count = re.subn(
        r"^\{\$SITE:.*\} \{$",
        rf"\g<0>\n\tbind 127.0.0.1\n\ttls {certificates}/chain.pem {certificates}/key.pem",
        (DEPLOY / "Caddyfile").read_text(),
        flags=re.MULTILINE,
    )
    assert count == 1
    text = text.replace("{\n", f"{{\n\thttp_port {plain_port}\n\thttps_port {port}\n", 1)
    (directory / "Caddyfile").write_text(text)
    command = [shutil.which("caddy"), "run", "--adapter", "caddyfile", "--config", directory / "Caddyfile"]
    home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    return command, {"SITE": NAME, "GATEWAY": f"127.0.0.1:{gateway.port}", "PATH": "/usr/bin:/bin", **home}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[nginx, caddy], ids=lambda proxy: proxy.__name__)
async def proxy(request, behind, certificate, tmp_path_factory):
    """(port of TLS, plain port, everything that it wrote)"""
    directory = tmp_path_factory.mktemp(request.param.__name__)
    port, plain_port = free_port(), free_port()
    command, env = request.param(directory, behind, port, plain_port, certificate[0])
    with (directory / "out").open("wb") as out:
        process = subprocess.Popen(command, cwd=directory, env=env, stdout=out, stderr=out)

    def wrote():
        return "".join(path.read_text() for path in directory.iterdir() if path.suffix == ".log" or path.name == "out")

    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, wrote()
            assert time.monotonic() < deadline, wrote()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.05)
        writer.close()
        yield port, plain_port, wrote
    finally:
        # At once, with the workers: Caddy would wait for the calls of a test that failed.
        process.send_signal(signal.SIGTERM if request.param is nginx else signal.SIGKILL)
        process.wait(timeout=30)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(proxy, certificate, behind):
    headers = {"host": NAME, "authorization": f"Bearer {behind.key}"}
    async with httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{proxy[0]}", verify=certificate[1], headers=headers, trust_env=False, timeout=30
    ) as made:
        # The certificate is of the name, whatever address it has here.
        made.event_hooks["request"].append(say_the_name)
        yield made


async def say_the_name(request):
    request.extensions["sni_hostname"] = NAME


CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "Hi"}]}


async def test_chunks_come_through_while_the_stream_is_still_being_made(client, behind, shared_fake):
    """And who leaves the proxy has left the backend."""
    shared_fake.faults(path="/api/chat", model="llama3.2", hang_after_chunks=3, times=1)
    async with client.stream("POST", "/api/chat", json=CHAT) as answer:
        assert answer.status_code == 200
        seen = 0
        async for line in answer.aiter_lines():
            seen += bool(json.loads(line)["message"]["content"])
            if seen == 3:
                break
    record = await behind.record(answer.headers["x-request-id"], PATIENCE)
    assert (record.outcome, record.completion_tokens) == ("cancelled", 3)


async def test_i1_the_caller_is_who_calls_the_proxy_whatever_they_say(client, behind):
    answer = await client.post(
        "/api/chat", json={**CHAT, "stream": False}, headers={"x-forwarded-for": "203.0.113.9, 127.0.0.1"}
    )
    assert answer.status_code == 200, answer.text
    assert (await behind.record(answer.headers["x-request-id"])).client_address == "127.0.0.1"


LARGEST = 20 << 20


async def test_bodies_that_the_gateway_takes_pass_and_larger_ones_do_not(client, shared_fake):
    text = "x" * (3 << 20)
    answer = await client.post("/api/generate", json={"model": "llama3.2", "prompt": text, "stream": False})
    assert answer.status_code == 200, answer.text
    with no_calls(shared_fake):
        try:
            answer = await client.post("/api/chat", content=b" " * (LARGEST + 1))
        except (httpx.WriteError, httpx.ReadError):
            pass  # Caddy closes the connection without waiting for the rest, and its answer may be lost with it
        else:
            assert answer.status_code == 413


async def test_uploads_of_models_are_not_held_to_the_size_of_calls(proxy, client, behind):
    # One that is there already is refused before it is read.
    model = f"{proxy[0]}".encode() * (LARGEST // 4)
    path = f"/api/blobs/sha256:{hashlib.sha256(model).hexdigest()}"
    answer = await client.post(path, content=model, headers={"authorization": f"Bearer {behind.manager}"})
    assert answer.status_code == 201, answer.text


async def test_pages_know_that_people_came_by_https(client):
    page = await client.get("/account/login/")
    assert page.status_code == 200
    assert "secure" in page.headers["set-cookie"].lower()
    assert page.headers["strict-transport-security"]


async def test_live_pages_are_upgraded(proxy, certificate, behind):
    async with connect(
        f"wss://{NAME}/ws/live", host="127.0.0.1", port=proxy[0], ssl=certificate[1], server_hostname=NAME,
        origin=f"https://{NAME}", additional_headers={"cookie": f"sessionid={behind.session}"}, proxy=None,
    ) as page:  # fmt: skip
        assert await asyncio.wait_for(page.recv(), PATIENCE)


async def test_l7_a_key_in_the_path_is_logged_nowhere(proxy, client, behind):
    answer = await client.get(f"/k/{behind.key}/api/version")
    assert answer.status_code == 200, answer.text
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as plain:
        await plain.get(f"http://127.0.0.1:{proxy[1]}/k/{behind.key}/api/version", headers={"host": NAME})
    assert (await client.get("/api/version")).status_code == 200
    assert behind.key not in proxy[2]()
    assert behind.key not in behind.log()


async def test_the_docs_print_these_very_files():
    page = (ROOT / "docs" / "deployment.md").read_text()
    for name, kind in (("nginx.conf", "nginx"), ("Caddyfile", "caddyfile")):
        assert f"```{kind}\n{(DEPLOY / name).read_text()}```" in page, name
