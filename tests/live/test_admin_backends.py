"""What the admin does with backends, on a real gateway and a real fake: tests, pulls, loads, deletions."""

import asyncio
import re
import ssl
import time

import pytest
import pytest_asyncio
import trustme

from proxy.fake_ollama import FakeOllama
from proxy.fake_ollama.names import parse_name
from proxy.models import Backend, BackendReport, ModelAlias, ModelJob, ModelPolicy, WorkerReport
from tenants.models import User
from tests.live.admin_forms import PASSWORD, USERNAME, Admin

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def gateway(make_shared_gateway, shared_fake):
    gateway = make_shared_gateway(PROBE_SECONDS="0.2")
    gateway.make_backend(shared_fake.url, name="gpu")
    root = User(username=USERNAME, is_staff=True, is_superuser=True)
    root.set_password(PASSWORD)
    root.save(using=gateway.alias)
    return gateway.start()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(gateway):
    admin = Admin(gateway.url)
    await admin.sign_in()
    yield admin
    await admin.close()


async def until(condition, seconds=60):
    began = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.05)
    print(f"seen after {time.monotonic() - began:.1f} s")
    return found


def gpu(gateway):
    return gateway.rows(Backend).get(name="gpu")


def page_of(row, page="models"):
    return f"/admin/proxy/backend/{row.pk}/{page}/"


async def press(admin, row, **button):
    await admin.post(page_of(row), button)


def pullable(fake, model):
    fake.pullable.add(parse_name(model).key)


async def ended(gateway, model):
    return await until(lambda: gateway.rows(ModelJob).filter(model=model).exclude(state="running").first())


async def press_test(admin, row):
    fields = {"csrfmiddlewaretoken": admin.http.cookies.get("csrftoken", "")}
    return await admin.http.post(page_of(row, "test"), data=fields)


async def test_b15_a_test_says_whether_it_is_an_ollama_and_what_it_has(gateway, admin, shared_fake):
    answer = await press_test(admin, gpu(gateway))
    assert answer.status_code == 200
    assert f"is Ollama {shared_fake.version}" in answer.text
    assert "llama3.2:latest" in answer.text


async def test_b15_a_test_shows_nothing_that_another_server_says(gateway, admin):
    async def leak(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"version": "secret-of-the-intranet <b>", "error": "secret-of-the-intranet"}'
        writer.write(b"HTTP/1.1 403 secret-of-the-intranet\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    async with await asyncio.start_server(leak, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        row = gateway.make_backend(f"http://127.0.0.1:{port}", name="intranet", enabled=False)
        answer = await press_test(admin, row)
    gone = await press_test(admin, row)
    gateway.rows(Backend).filter(pk=row.pk).delete()
    assert answer.status_code == gone.status_code == 200
    assert "/api/version answered 403" in answer.text
    assert "secret-of-the-intranet" not in answer.text
    assert "cannot be connected to" in gone.text


async def test_a_test_says_that_a_certificate_is_not_trusted(gateway, admin):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def ollama(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"version": "0.33.0", "models": []}'
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(ollama, "127.0.0.1", 0, ssl=context) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        row = gateway.make_backend(url, name="tls", enabled=False)
        untrusted = await press_test(admin, row)
        row.ca_certificates = authority.cert_pem.bytes().decode()
        row.save(using=gateway.alias)
        trusted = await press_test(admin, row)
        gateway.rows(Backend).filter(pk=row.pk).delete()
    assert "Its certificate is not trusted" in untrusted.text
    assert "is Ollama 0.33.0" in trusted.text


async def test_b14_the_gateway_itself_is_no_backend(gateway, admin):
    await until(lambda: gateway.rows(WorkerReport).exclude(listens=[]).first())
    form = await admin.http.get("/admin/proxy/backend/add/")
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)[1]
    fields = {"csrfmiddlewaretoken": token, "name": "me", "slots": "1", "transport": "wire", "enabled": "on"}
    for host in ("127.0.0.1", "localhost"):
        answer = await admin.http.post(
            "/admin/proxy/backend/add/", data={**fields, "url": f"http://{host}:{gateway.port}"}
        )
        assert answer.status_code == 200
        assert "This is the gateway itself" in answer.text
    assert not gateway.rows(Backend).filter(name="me").exists()


async def test_a_pull_shows_its_progress_and_what_was_pulled(gateway, admin, shared_fake):
    pullable(shared_fake, "phi4")
    shared_fake.faults(path="/api/pull", model="phi4:latest", hang_after_chunks=3)
    row = gpu(gateway)
    await press(admin, row, pull="phi4")
    job = await until(lambda: gateway.rows(ModelJob).filter(model="phi4:latest", completed__gt=0).first())
    assert (job.state, job.action, job.started_by.username) == ("running", "pull", USERNAME)
    assert 0 < job.percent < 100
    part = await admin.http.get(page_of(row, "models/jobs"))
    assert f'value="{job.percent}"' in part.text
    assert part.headers["x-refresh-seconds"] == "1"
    # A second pull of the same model waits for the first.
    await press(admin, row, pull="phi4:latest")
    assert "Something is being done with phi4:latest" in (await admin.http.get(page_of(row))).text
    assert gateway.rows(ModelJob).filter(model="phi4:latest").count() == 1
    shared_fake.release()
    job = await ended(gateway, "phi4:latest")
    assert (job.state, job.percent, job.problem) == ("done", 100, "")
    await until(lambda: "phi4:latest" in repr(gateway.rows(BackendReport).get(backend__name="gpu").models))
    assert "phi4:latest" in (await admin.http.get(page_of(row, "models/list"))).text


async def test_a_pull_is_cancelled(gateway, admin, shared_fake):
    pullable(shared_fake, "big")
    shared_fake.faults(path="/api/pull", model="big:latest", hang_after_chunks=2)
    row = gpu(gateway)
    await press(admin, row, pull="big")
    job = await until(lambda: gateway.rows(ModelJob).filter(model="big:latest", completed__gt=0).first())
    await press(admin, row, cancel=str(job.pk))
    job = await ended(gateway, "big:latest")
    assert (job.state, job.problem) == ("cancelled", "")


@pytest.mark.parametrize(
    ("model", "faults", "problem"),
    [
        ("nowhere", {}, "The registry has no model of this name."),
        ("cut", {"eof_after_chunks": 2}, "ended the pull before it was complete"),
        ("reset", {"reset_after_chunks": 2}, "does not answer in valid HTTP"),
        ("hostile", {"status": 500, "error": "<script>at /root/.ollama</script>"}, "refused it with the status 500"),
    ],
)
async def test_a_pull_that_fails_says_why_in_our_words(gateway, admin, shared_fake, model, faults, problem):
    if faults:
        pullable(shared_fake, model)
        shared_fake.faults(path="/api/pull", model=f"{model}:latest", times=1, **faults)
    row = gpu(gateway)
    await press(admin, row, pull=model)
    job = await ended(gateway, f"{model}:latest")
    assert job.state == "failed"
    assert problem in job.problem
    assert problem in (await admin.http.get(page_of(row, "models/jobs"))).text


async def test_a_model_is_loaded_as_its_policy_says_and_unloaded(gateway, admin, shared_fake):
    await shared_fake.switch(log_bodies=True)
    gateway.rows(ModelPolicy).create(pattern="qwen3:8b", num_ctx=2048, keep_alive="30m", load_options={"num_gpu": 1})
    row = gpu(gateway)
    await press(admin, row, load="qwen3:8b")
    assert (await ended(gateway, "qwen3:8b")).state == "done"
    sent = [call for call in shared_fake.calls if call.path == "/api/generate"][-1].json
    assert sent["options"] == {"num_ctx": 2048, "num_gpu": 1}
    assert sent["keep_alive"] == "30m"
    await until(
        lambda: any(model["name"] == "qwen3:8b" for model in gateway.rows(BackendReport).get(backend__name="gpu").warm)
    )
    await press(admin, row, unload="qwen3:8b")
    await until(
        lambda: (
            not any(model["name"] == "qwen3:8b" for model in gateway.rows(BackendReport).get(backend__name="gpu").warm)
        )
    )


async def test_deleting_a_model_says_first_who_would_miss_it(gateway, admin, shared_fake):
    gateway.rows(ModelAlias).create(pattern="gpt-4o", model="nomic-embed-text")
    gateway.make_key("embedder", models_allowed=["nomic-embed-text"])
    row = gpu(gateway)
    token = admin.http.cookies.get("csrftoken", "")
    asked = await admin.http.post(page_of(row), data={"csrfmiddlewaretoken": token, "delete": "nomic-embed-text"})
    assert asked.status_code == 200
    for sentence in ("No other backend has it", "Alias: gpt-4o", "Key that names it: embedder"):
        assert sentence in asked.text
    assert not [call for call in shared_fake.calls if call.path == "/api/delete"]
    await press(admin, row, delete="nomic-embed-text", confirmed="yes")
    assert (await ended(gateway, "nomic-embed-text:latest")).state == "done"
    await until(lambda: "nomic" not in repr(gateway.rows(BackendReport).get(backend__name="gpu").models))


async def test_a_name_that_is_none_is_refused(gateway, admin):
    before = gateway.rows(ModelJob).count()
    await press(admin, gpu(gateway), pull="../../etc/passwd")
    assert "cannot be the name of a model" in (await admin.http.get(page_of(gpu(gateway)))).text
    assert gateway.rows(ModelJob).count() == before


@pytest.mark.asyncio(loop_scope="function")
async def test_a_job_whose_process_died_is_given_up(make_gateway):
    async with FakeOllama(models=["llama3.2"], slots=1) as fake:
        gateway = make_gateway()
        row = gateway.make_backend(fake.url)
        job = gateway.rows(ModelJob).create(backend=row, model="lost:latest", action="pull")
        gateway.rows(ModelJob).filter(pk=job.pk).update(seen_at="2026-01-01T00:00Z")
        await asyncio.to_thread(gateway.start)
        job = await until(lambda: gateway.rows(ModelJob).exclude(state="running").first())
        assert job.state == "failed"
        assert "process ended" in job.problem
