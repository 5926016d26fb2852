"""The sockets the server listens on, and who holds the port if they cannot be had."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from .options import ServerOptions


class CannotListen(Exception):
    """Its text is the one line for the operator."""


# Family, host and port to bind.
Place = tuple[int, str, int]


def listen(options: ServerOptions) -> list[socket.socket]:
    """One listening socket for each address of the host and each port; those of the main port first."""
    sockets: list[socket.socket] = []
    for port in (options.port, *options.further_ports):
        try:
            for family, address in _addresses(options.host, port):
                sock = bind((family, address, port))
                sockets.append(sock)
                sock.listen(options.backlog)
                # Port 0 lets the kernel choose; the other addresses then get the same.
                port = sock.getsockname()[1]
        except OSError as exc:
            close(sockets)
            raise CannotListen(_reason(exc, options.host, port)) from exc
    return sockets


def can_listen(options: ServerOptions) -> bool:
    """Whether the ports are to be had now; who has them is told by whoever then tries."""
    try:
        close(listen(options))
    except CannotListen:
        return False
    return True


def reserve(options: ServerOptions) -> tuple[list[socket.socket], list[Place]]:
    """Hold the port without listening, and the places where each worker then listens by itself.

    A queue of its own for each worker, rather than one for all: of 64 connections opened one after another, one of
    four workers on a shared socket was given 63, since the kernel wakes whoever began to wait last. And a worker
    that is starting or has died has no queue in which clients would wait.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise CannotListen("Several workers cannot share a port on this system; use one.")
    # Alone first: beside sockets that share, a busy port would not be noticed.
    alone = listen(options)
    places = [(sock.family, *sock.getsockname()[:2]) for sock in alone]
    close(alone)
    return [bind(place, shared=True) for place in places], places


def listen_beside(places: list[Place], backlog: int) -> list[socket.socket]:
    sockets = [bind(place, shared=True) for place in places]
    for sock in sockets:
        sock.listen(backlog)
    return sockets


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _addresses(host: str, port: int) -> list[tuple[int, str]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as exc:
        raise CannotListen(f"Cannot listen on {host!r}: {exc.strerror}.") from exc
    return list(dict.fromkeys((int(family), str(address[0])) for family, _, _, _, address in found))


def bind(place: Place, shared: bool = False) -> socket.socket:
    family, address, port = place
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "::" alone means every address, of both families.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        sock.bind((address, port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port) or "another process"
        return f"Port {port} on {host} is in use by {holder}. {what_to_do(holder, port)}"
    if error.errno == errno.EACCES:
        return f"Port {port} on {host} needs more rights than this process has; ports from 1024 on do not."
    return f"Cannot listen on {host} port {port}: {error.strerror}."


def what_to_do(holder: str, port: int) -> str:
    if holder.startswith("ollama"):
        return (
            f"To take its place, move Ollama (OLLAMA_HOST=127.0.0.1:{port + 1} ollama serve) and start this with "
            f"--upstream http://127.0.0.1:{port + 1}. Or choose another port with --port."
        )
    return "End it, or choose another port with --port."


def holder_of(port: int) -> str | None:
    """Name and pid of a process that listens on `port`, as far as Linux lets us see it."""
    found = listener_of(port)
    return found and f"{found[0]} (pid {found[1]})"


def listener_of(port: int) -> tuple[str, int] | None:
    """(name, pid)"""
    inodes = set(_listening_inodes(port))
    if not inodes:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        if any(link in inodes for link in _descriptors(process)):
            return _name(process), int(process.name)
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            # Column 1 is address:port in hexadecimal; state 0A is LISTEN.
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{columns[9]}]"


def _descriptors(process: Path) -> Iterator[str]:
    try:
        for descriptor in (process / "fd").iterdir():
            yield str(descriptor.readlink())
    except OSError:
        return


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a process"
