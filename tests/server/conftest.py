import pytest

from .wire import Server

# Long enough for a loaded machine to send a head in one go, short enough to wait for.
QUICK = {
    "header_seconds": 0.6,
    "keepalive_seconds": 0.8,
    "body_grace_seconds": 0.4,
    "stall_seconds": 0.5,
    "linger_seconds": 0.6,
    "drain_seconds": 5.0,
}


@pytest.fixture(scope="session")
def shared_server():
    """One process with its usual deadlines, for all tests that ask nothing special of it."""
    server = Server(max_connections_per_address=1000)
    yield server
    server.end()


@pytest.fixture
def server(shared_server):
    shared_server.ask("/_reset")
    return shared_server


@pytest.fixture(scope="session")
def shared_quick_server():
    server = Server(**QUICK, max_connections_per_address=1000)
    yield server
    server.end()


@pytest.fixture
def quick_server(shared_quick_server):
    """A server whose deadlines pass within a second or two."""
    shared_quick_server.ask("/_reset")
    return shared_quick_server


@pytest.fixture
def start_server():
    servers = []

    def start(**options):
        servers.append(Server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.end()
