"""`doctor`: each thing that can be wrong is found, named, and comes with how to mend it."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from gateway_site.doctor import Level, disks, network, servers, stores
from proxy.fake_ollama import FakeOllama
from proxy.models import Backend, WorkerReport
from tests.factories import make_backend
from tests.ports import free_port
from tests.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[2]
MOUNTS = "27 1 254:0 / / rw - ext4 /dev/vda rw\n28 27 0:3 / {} rw shared:1 - {} none rw\n"


def levels(findings):
    return [finding.level for finding in findings]


def the_worst(findings):
    order = [Level.OK, Level.NOTE, Level.WARNING, Level.PROBLEM]
    return max(findings, key=lambda finding: order.index(finding.level))


# Disks


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/gateway", "ext4"),
        ("/data", "tmpfs"),
        ("/data/spool/a", "tmpfs"),
        ("/database", "ext4"),
        ("/with space/x", "nfs4"),
    ],
)
def test_the_deepest_mount_decides(path, kind):
    mounts = MOUNTS.format("/data", "tmpfs") + "29 27 0:4 / /with\\040space rw - nfs4 server:/x rw\n"
    assert disks.filesystem_of(Path(path), mounts) == kind
    assert disks.filesystem_of(Path(path), "") == ""


@pytest.mark.parametrize(
    ("kind", "level", "says"),
    [
        ("ext4", Level.OK, "room for"),
        ("tmpfs", Level.PROBLEM, "a restart loses it"),
        ("overlay", Level.PROBLEM, "Mount a volume"),
        ("nfs4", Level.WARNING, "local disk"),
    ],
)
def test_a_spool_that_would_be_lost_is_a_problem(settings, tmp_path, monkeypatch, kind, level, says):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(tmp_path.resolve(), kind))
    monkeypatch.setattr(disks, "MOUNTS", mounts)
    settings.GATEWAY = dataclasses.replace(settings.GATEWAY, spool_dir=tmp_path / "spool", spool_max_bytes=1 << 20)
    found = the_worst(disks.look_at_spool())
    assert found.level is level
    assert says in found.text + found.mend


def test_a_spool_without_room_and_refused_records_are_told(settings, tmp_path):
    (tmp_path / "quarantine.jsonl").write_text("{}\n")
    settings.GATEWAY = dataclasses.replace(settings.GATEWAY, spool_dir=tmp_path, spool_max_bytes=1 << 60)
    texts = [finding.text for finding in disks.look_at_spool() if finding.level is Level.WARNING]
    assert "SPOOL_MAX_BYTES allows" in texts[0]
    assert "quarantine.jsonl" in texts[1]


def test_secrets_and_data_that_others_can_read_are_told(settings, tmp_path):
    settings.DATA_DIR = tmp_path
    tmp_path.chmod(0o755)
    (tmp_path / "key_pepper").touch(mode=0o644)
    found = [finding for finding in disks.look_at_data() if finding.mend]
    assert [finding.mend for finding in found] == [f"chmod 700 {tmp_path}", f"chmod 600 {tmp_path / 'key_pepper'}"]
    settings.DATA_DIR = tmp_path / "missing"
    assert levels(disks.look_at_data()) == [Level.PROBLEM]


# Database and Redis


@pytest.mark.django_db
def test_a_lost_trigger_and_a_missing_migration_are_told():
    assert the_worst(stores.look_at_database()).level is Level.OK
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER ogw_tenants_apikey_update")
    assert "ogw_tenants_apikey_update" in the_worst(stores.look_at_database()).text
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'usage'")
    found = the_worst(stores.look_at_database())
    assert "e.g. usage.0001" in found.text
    assert "manage.py migrate" in found.mend


@pytest.mark.django_db
def test_several_workers_without_redis_are_told(settings):
    settings.REDIS_URL = ""
    assert levels(stores.look_at_redis()) == [Level.OK]
    for pid in (1, 2):
        now = timezone.now()
        WorkerReport.objects.create(host="here", pid=pid, revision=1, listens=[], started_at=now, seen_at=now)
    assert levels(stores.look_at_redis()) == [Level.WARNING]


def test_redis_is_asked_and_its_password_is_not_told(settings):
    settings.REDIS_URL = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    found = the_worst(stores.look_at_redis())
    assert found.level is Level.PROBLEM
    assert "hunter2" not in found.text + found.mend
    server = RedisServer()
    try:
        settings.REDIS_URL = server.start().url
        assert levels(stores.look_at_redis()) == [Level.OK]
    finally:
        server.remove()


def test_clocks_that_differ_are_told():
    now = timezone.now()
    assert list(stores._clock("It", now, now)) == []
    # However long the answer took, it may have been given at its beginning.
    assert list(stores._clock("It", now - timedelta(minutes=4), now - timedelta(minutes=5))) == []
    assert "300 s apart" in next(stores._clock("It", now - timedelta(minutes=5), now)).text
    assert "apart" in next(stores._clock("It", now + timedelta(minutes=5), now)).text


# Network


@pytest.mark.django_db
def test_a_taken_port_names_its_process_unless_that_is_us(settings):
    settings.HOST, settings.ADMIN_PORT, settings.METRICS_PORT = "127.0.0.1", 0, 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings.PORT = taken.getsockname()[1]
        [found] = network.look_at_ports()
        assert found.level is Level.PROBLEM
        assert f"(pid {os.getpid()})" in found.text
        now = timezone.now()
        listens = [f"127.0.0.1:{settings.PORT}"]
        WorkerReport.objects.create(host="x", pid=1, revision=1, listens=listens, started_at=now, seen_at=now)
        assert levels(network.look_at_ports()) == [Level.OK]
    settings.PORT = free_port()
    [found] = network.look_at_ports()
    assert found.level is Level.NOTE
    assert found.text.endswith(f"the gateway that runs listens on {listens[0].rpartition(':')[2]}.")
    WorkerReport.objects.all().delete()
    assert levels(network.look_at_ports()) == [Level.OK]


def test_a_proxy_of_the_environment_is_told(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    assert levels(network.look_at_proxies()) == [Level.OK]
    monkeypatch.setenv("http_proxy", "http://user:hunter2@proxy:3128")
    [found] = network.look_at_proxies()
    assert (found.level, "hunter2" in found.text) == (Level.WARNING, False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert levels(network.look_at_proxies()) == [Level.NOTE]


# Backends


async def test_a_server_that_answers_is_told_from_one_that_does_not():
    async with FakeOllama(models=["phi4", "llama3.2"]) as fake, FakeOllama(models=[]) as empty:
        rows = [
            Backend(pk=pk, name=str(pk), url=url)
            for pk, url in enumerate((fake.url, empty.url, f"http://127.0.0.1:{free_port()}"))
        ]
        found = await servers._problems_of(rows)
    assert found[0] == ("", 2)
    assert found[1] == ("", 0)
    assert found[2] == ("It cannot be connected to.", 0)


@pytest.mark.django_db
def test_no_server_none_that_answers_and_ourselves_each_have_their_remedy(settings, monkeypatch, tmp_path):
    settings.UPSTREAM = f"http://127.0.0.1:{free_port()}"
    [found] = servers.look_at_backends()
    assert settings.UPSTREAM in found.text
    assert "ollama serve" in found.mend
    gone = make_backend("gone", enabled=False)
    assert "add_backend" in the_worst(servers.look_at_backends()).mend
    gone.delete()
    settings.HOST, settings.PORT = "127.0.0.1", free_port()
    make_backend("nobody", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(servers, "MARK_OF_A_CONTAINER", tmp_path / "not there")
    assert "ollama serve" in the_worst(servers.look_at_backends()).mend
    monkeypatch.setattr(servers, "MARK_OF_A_CONTAINER", tmp_path)
    assert "host.docker.internal" in the_worst(servers.look_at_backends()).mend
    Backend.objects.update(url=f"http://127.0.0.1:{settings.PORT}")
    assert "11435" in the_worst(servers.look_at_backends()).mend
    make_backend("twin", f"http://127.0.0.1:{settings.PORT}")
    assert "are one server" in next(iter(servers.look_at_backends())).text


class AnotherWebServer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(self.server.status)

    def log_message(self, *args):
        pass


@pytest.fixture
def another():
    """A web server that is not Ollama; `status` is what it answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), AnotherWebServer)
    server.status = 404
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("status", "remedy"), [(404, "it is not Ollama"), (502, "no working Ollama behind it"), (401, "wants a credential")]
)
def test_a_server_that_answers_and_is_not_ollama_is_not_said_to_be_silent(another, monkeypatch, status, remedy):
    another.status = status
    monkeypatch.setattr(servers, "MARK_OF_A_CONTAINER", ROOT)
    make_backend("web", f"http://127.0.0.1:{another.server_port}")
    [found] = servers.look_at_backends()
    assert found.level is Level.PROBLEM
    assert f"/api/version answered {status}" in found.text
    assert remedy in found.mend
    assert "container" not in found.mend


@pytest.mark.django_db
def test_a_first_server_that_is_not_ollama_is_named_so(another, settings):
    settings.UPSTREAM = f"http://127.0.0.1:{another.server_port}"
    [found] = servers.look_at_backends()
    assert "something answers that is not Ollama" in found.text


@pytest.mark.parametrize(
    ("variable", "slots", "workers", "level"),
    [
        ("", 1, 1, None),
        ("", 2, 1, Level.WARNING),
        ("4", 2, 2, None),
        ("4", 2, 3, Level.WARNING),
        ("4", 2, 1, Level.NOTE),
    ],
)
def test_slots_are_compared_with_what_ollama_runs(tmp_path, variable, slots, workers, level):
    """A process called ollama that listens, as the real one does, with or without OLLAMA_NUM_PARALLEL."""
    (tmp_path / "ollama").symlink_to(sys.executable)
    script = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\n"
        "sys.stdin.read()\n"
    )
    env = {"OLLAMA_NUM_PARALLEL": variable} if variable else {}
    with subprocess.Popen(
        [tmp_path / "ollama", "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as process:
        row = Backend(pk=1, name="here", url=f"http://127.0.0.1:{int(process.stdout.readline())}", slots=slots)
        found = list(servers._slots(row, workers))
        process.communicate()
    assert levels(found) == ([level] if level else [])


def test_slots_of_a_server_elsewhere_cannot_be_compared():
    row = Backend(pk=1, name="far", url="http://192.0.2.1:11434", slots=3)
    assert levels(servers._slots(row, 1)) == [Level.NOTE]


# The command


def test_it_goes_on_without_a_database_and_ends_with_1(tmp_path):
    done = subprocess.run(
        [sys.executable, "manage.py", "doctor", "--json"],
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(tmp_path), "DATABASE_URL": "postgres://gw:hunter2@127.0.0.1:1/gw"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    said = json.loads(done.stdout)
    about = {finding["about"]: finding["level"] for finding in said["findings"]}
    assert said["problems"] >= 1
    assert about["Database"] == "problem"
    assert about["Backends"] == "note"
    assert "DATABASE_URL" in done.stdout
