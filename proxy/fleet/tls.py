"""How a backend is recognised, and how the gateway shows who it is."""

import os
import ssl
import tempfile
from typing import IO

from proxy.snapshot import Backend


def context_for(backend: Backend) -> ssl.SSLContext | None:
    """None for http. Raises ssl.SSLError, ValueError or TypeError for certificates that cannot be read."""
    if not backend.url.startswith("https:"):
        return None
    context = _trusting(backend.ca_certificates)
    if backend.client_certificate:
        load_pair(context, backend.client_certificate, backend.client_key)
    return context


def context_for_proxy(backend: Backend) -> ssl.SSLContext | None:
    """None for http. The backend's authorities are believed of its proxy, too."""
    if not backend.proxy_url.startswith("https:"):
        return None
    try:
        return _trusting(backend.ca_certificates)
    except (ssl.SSLError, ValueError, TypeError):
        return ssl.create_default_context()  # said of the backend already


def _trusting(authorities: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if authorities:
        context.load_verify_locations(cadata=authorities)
    return context


def load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Loads a client certificate and its key, both PEM. Raises ssl.SSLError or ValueError."""
    with _file_of_ours() as file:
        file.write(f"{certificate}\n{key}\n".encode())
        file.flush()
        name = f"/proc/self/fd/{file.fileno()}" if isinstance(file.name, int) else file.name
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(name, password=_no_password)


def _file_of_ours() -> IO[bytes]:
    """OpenSSL reads a key from a file only: one in memory where there is such a thing."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("client-certificate"), "wb")
    return tempfile.NamedTemporaryFile(suffix=".pem")


def _no_password() -> str:
    raise ValueError("the key is protected by a password")
