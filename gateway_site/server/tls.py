"""The files that `serve --tls-cert --tls-key` names: what is wrong with them is said before anything starts."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

# Long enough for whoever reads logs once a week.
SOON = timedelta(days=14)


class BadCertificate(Exception):
    """Its text is the one line for the operator."""


def check(certificate: str, key: str) -> str:
    """A warning about a certificate that ends soon, or an empty text. Raises BadCertificate."""
    context_of(certificate, key)
    return warning_about(certificate)


def context_of(certificate: str, key: str) -> ssl.SSLContext:
    """One that shows this certificate. Raises BadCertificate."""
    chain = _read(certificate, "--tls-cert")
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        raise BadCertificate(f"--tls-cert: {certificate} holds no certificate in PEM (-----BEGIN CERTIFICATE-----).")
    if b"PRIVATE KEY-----" not in _read(key, "--tls-key"):
        raise BadCertificate(f"--tls-key: {key} holds no private key in PEM (-----BEGIN PRIVATE KEY-----).")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without this OpenSSL would ask on the terminal, or hang where there is none.
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except _NeedsPassphrase:
        raise BadCertificate(
            f"--tls-key: {key} wants a passphrase. Take it off: openssl pkey -in {key} -out key.pem"
        ) from None
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise BadCertificate(
                f"--tls-key: {key} is not the key of the first certificate in {certificate}. That one must be the "
                f"server's own, with the chain after it."
            ) from None
        raise BadCertificate(f"--tls-cert, --tls-key: OpenSSL cannot use them ({exc.reason or exc}).") from None
    except OSError as exc:
        raise BadCertificate(f"--tls-cert, --tls-key: they cannot be read ({exc.strerror}).") from None
    return context


class _NeedsPassphrase(Exception):
    pass


def _no_passphrase() -> str:
    raise _NeedsPassphrase


def _read(path: str, flag: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise BadCertificate(f"{flag}: {path} cannot be read ({exc.strerror}).") from None


def warning_about(certificate: str) -> str:
    """That it ends soon, or an empty text. Raises BadCertificate."""
    chain = _read(certificate, "--tls-cert")
    try:
        ends = x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc
    except ValueError:  # OpenSSL takes it; its dates are the clients' to judge
        return ""
    left = ends - datetime.now(UTC)
    if left > SOON:
        return ""
    verb = "ended" if left < timedelta() else "ends"
    return f"The certificate {verb} at {ends:%Y-%m-%d %H:%M} UTC. Renew it: the new one is taken from the same files."
