"""By which names a caller who brings no key may call us (DNS rebinding, ollama-api §4.5). Pure.

A web page can have its own name point to our address; its requests then look same-origin, but bear that name.
"""

import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from proxy.client_address import parse_address

# Nobody outside can make these names lead anywhere.
_LOCAL = (".localhost", ".local", ".internal")
# Worked-out answers kept: a Host is what strangers make up.
REMEMBERED = 1000


class HostNames:
    def __init__(self, known: Iterable[str], site_url: str = "") -> None:
        """`known`: as in ALLOWED_HOSTS; a leading dot stands for all names below. "*" says nothing about a name."""
        names = {name.lower() for name in known if name != "*"}
        ours = ("localhost", socket.gethostname().lower(), (urlsplit(site_url).hostname or "localhost").lower())
        self._names = {*ours, *(name.removeprefix(".") for name in names)}
        self._endings = (*_LOCAL, *(name for name in names if name.startswith(".")))
        self._verdicts: dict[bytes, bool] = {}

    def know(self, host: bytes) -> bool:
        """Whether the value of a Host header is an address, local, or a name of ours."""
        verdict = self._verdicts.get(host)
        if verdict is None:
            if len(self._verdicts) >= REMEMBERED:
                self._verdicts.clear()
            verdict = self._verdicts[host] = self._decide(host.decode("latin-1").lower())
        return verdict

    def _decide(self, host: str) -> bool:
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        name = name.removesuffix(".")
        return parse_address(name) is not None or name in self._names or name.endswith(self._endings)
