"""Where a backend's name leads, asked when it is saved (threat B14); upstream/ asks again at each connect.

And whether an address is one of this machine.
"""

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from threading import Thread
from urllib.parse import urlsplit

from proxy.backend_url import refuse_address

# getaddrinfo has no timeout of its own, and a form must not hang on a dead name server.
PATIENCE_SECONDS = 3


def refuse_where_it_leads(url: str) -> None:
    """Raises ValueError if the host is known to have an address that no Ollama lives at."""
    # A name that is not known yet is fine: containers and machines may come up later.
    for address in addresses_of(urlsplit(url).hostname or ""):
        refuse_address(ip_address(address.partition("%")[0]))


def addresses_of(host: str) -> list[str]:
    found: list[str] = []

    def look_up() -> None:
        with suppress(OSError, UnicodeError):
            found.extend(str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))

    thread = Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return list(found)


def is_of_this_machine(address: IPv4Address | IPv6Address) -> bool:
    """Only one's own addresses can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
