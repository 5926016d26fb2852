"""L1 and the life of the processes: start, restart, drain, exit."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from .wire import HERE, PATIENCE, Server

HOLD = b"GET /hold HTTP/1.1\r\nHost: t\r\n\r\n"
ECHO = b"GET /echo HTTP/1.1\r\nHost: t\r\n\r\n"


def refuses_connections(port):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionError:
            return True
        time.sleep(0.01)
    return False


def exit_code(server):
    return server.process.wait(PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_l1_a_signal_lets_answers_end_and_exits_0(start_server, number):
    server = start_server(drain_seconds=20)
    idle = server.wire().send(ECHO)
    idle.answer()
    with server.wire() as busy, server.wire() as releasing:
        # In a head, so that it can still ask when the listener is closed.
        releasing.send(b"GET /_release HTTP/1.1\r\n")
        busy.send(HOLD)
        server.saw("holding", "/hold")
        server.process.send_signal(number)
        server.hears("begin_drain")
        assert idle.closed()
        assert refuses_connections(server.port)
        assert busy.silent()
        releasing.send(b"Host: t\r\n\r\n")
        assert releasing.answer().headers["connection"] == "close"
        answer = busy.answer()
        assert (answer.body, answer.headers["connection"]) == (b"held", "close")
        assert busy.closed()
    server.hears("drained")
    server.hears("closed")
    assert exit_code(server) == 0
    idle.sock.close()


def test_l1_the_drain_is_limited(start_server):
    server = start_server(drain_seconds=0.3)
    with server.wire() as busy:
        busy.send(HOLD)
        server.saw("holding", "/hold")
        server.process.terminate()
        server.hears("cut")
        assert busy.answer().body == b"held"
    server.hears("closed")
    assert exit_code(server) == 0


def test_l1_an_unread_answer_does_not_prolong_the_drain(start_server):
    server = start_server(drain_seconds=0.5)
    with server.wire(receive_buffer=4096) as wire:
        wire.send(b"GET /endless HTTP/1.1\r\nHost: t\r\n\r\n")
        server.saw("request", "/endless")
        server.process.terminate()
        assert exit_code(server) == 0
        server.hears("closed")


def test_l1_a_second_signal_ends_at_once_and_still_closes(start_server):
    server = start_server(drain_seconds=60)
    with server.wire() as busy:
        busy.send(HOLD)
        server.saw("holding", "/hold")
        server.process.terminate()
        server.hears("begin_drain")
        # A service manager that signals twice in a row means it once.
        server.process.terminate()
        with pytest.raises(Exception):  # noqa: B017 - still draining
            server.process.wait(0.8)
        time.sleep(0.5)
        server.process.terminate()
        server.hears("closed")
        assert exit_code(server) == 0


def test_l1_a_silent_newcomer_does_not_prolong_the_drain(start_server):
    server = start_server(drain_seconds=60)
    with server.wire() as wire:
        server.ask("/_seen")
        server.process.terminate()
        assert exit_code(server) == 0
        assert wire.closed()


def test_l1_a_hanging_thread_does_not_prolong_the_exit(start_server):
    server = start_server()
    with server.wire() as wire:
        assert wire.send(ECHO.replace(b"/echo", b"/hang")).answer().status == 200
    server.process.terminate()
    server.hears("closed")
    assert exit_code(server) == 0


def test_l1_a_third_signal_ends_even_a_blocked_loop(start_server):
    server = start_server()
    with server.wire() as wire:
        wire.send(ECHO.replace(b"/echo", b"/block"))
        server.hears("blocking")
        for _ in range(3):
            server.process.terminate()
            time.sleep(1.1)
        assert exit_code(server) == 1


def template_of(server):
    """The process that the workers are forked from."""
    [template] = [child for child in psutil.Process(server.process.pid).children() if child.children()]
    return template


def workers_of(server):
    return template_of(server).children()


@pytest.fixture(scope="module")
def workers_server():
    server = Server(workers=2, drain_seconds=20, max_connections_per_address=1000)
    yield server
    server.end()


def pids(server, count=40):
    return {server.ask("/_process")["pid"] for _ in range(count)}


def test_l1_workers_share_the_port(workers_server):
    assert pids(workers_server) == {worker.pid for worker in workers_of(workers_server)}


def test_l1_a_worker_that_dies_is_replaced_and_the_others_serve(workers_server):
    victim, other = workers_of(workers_server)
    victim.kill()
    victim.wait(PATIENCE)
    assert pids(workers_server, 10) == {other.pid}
    deadline = time.monotonic() + PATIENCE
    while len(pids(workers_server)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids(workers_server) == {worker.pid for worker in workers_of(workers_server)}


def test_l1_workers_drain_when_their_parent_is_told(start_server):
    server = start_server(workers=2, drain_seconds=20)
    workers = workers_of(server)
    wires = [server.wire().send(HOLD) for _ in range(6)]
    time.sleep(0.3)
    # Ctrl-C reaches the whole group: parent and workers.
    os.killpg(server.process.pid, signal.SIGINT)
    assert refuses_connections(server.port)
    assert all(worker.is_running() for worker in workers)
    assert all(wire.silent() for wire in wires)
    for wire in wires:
        wire.sock.shutdown(socket.SHUT_WR)
    time.sleep(1.1)
    os.killpg(server.process.pid, signal.SIGTERM)
    assert exit_code(server) == 0
    assert not any(worker.is_running() for worker in workers)
    for wire in wires:
        wire.sock.close()


def test_l1_workers_die_with_their_parent(start_server):
    server = start_server(workers=2)
    workers = workers_of(server)
    assert len(workers) == 2
    server.process.kill()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive


def test_l1_workers_are_replaced_when_what_they_are_forked_from_dies(start_server):
    server = start_server(workers=2)
    template, workers = template_of(server), workers_of(server)
    template.kill()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive  # no worker that nobody looks after
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError):
            if len(pids(server)) == 2:
                break
        time.sleep(0.05)
    assert pids(server) == {worker.pid for worker in workers_of(server)}
    server.process.terminate()
    assert exit_code(server) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_l1_a_busy_port_is_one_clear_line(workers):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(EOFError) as error:
            Server(port=port, workers=workers)
    assert f"Port {port} on 127.0.0.1 is in use by " in str(error.value)
    assert f"(pid {os.getpid()})" in str(error.value)
    assert str(error.value).count("\n") == 1


def test_l1_a_busy_port_exits_1(workers_server):
    found = subprocess.run(
        [sys.executable, str(HERE / "serve.py"), f'{{"port": {workers_server.port}, "workers": 2}}'],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith(f"Port {workers_server.port} on 127.0.0.1 is in use by python")


def test_l1_workers_that_cannot_start_end_the_parent():
    with pytest.raises(EOFError, match="No worker could start"):
        Server(workers=2, tls_certificate="/nowhere.pem", tls_key="/nowhere.pem")
