"""Calls whose place in the network is their credential: nobody else may make use of that place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy.client_address import SAID_BY_PROXIES, is_proxy
from proxy.errors import Forbidden

if TYPE_CHECKING:
    from proxy.runtime import Runtime

FOREIGN_PAGE = "Pages of this web origin may not call the gateway. An administrator can add it to CORS_ORIGINS."
UNKNOWN_NAME = (
    "This gateway does not know itself by the host name of the call, so the call needs an API key. An administrator "
    "can add the name to ALLOWED_HOSTS."
)
UNKNOWN_PROXY = (
    "The call came through a proxy that is not in TRUSTED_PROXIES, so it needs an API key: whose call it is cannot be "
    "told from its address."
)


def check_unborrowed(runtime: Runtime, fields: Mapping[bytes, bytes], own_origin: bytes, peer: str) -> None:
    """Raises Forbidden where a web page, a made-up host name or an unlisted proxy may stand between.

    `fields`: the headers, their names in lower case; `own_origin`: scheme and host that were called.
    """
    origin = fields.get(b"origin")
    if origin is not None and not runtime.origins.allow(origin, own_origin):
        raise Forbidden("origin_not_allowed", FOREIGN_PAGE)
    if not runtime.host_names.know(fields.get(b"host", b"")):
        raise Forbidden("host_not_known", UNKNOWN_NAME)
    if not SAID_BY_PROXIES.isdisjoint(fields):
        configuration = runtime.configuration
        if not is_proxy(peer, configuration.trusted_proxies, trusts_unix=configuration.trusts_unix):
            raise Forbidden("proxy_not_trusted", UNKNOWN_PROXY)
