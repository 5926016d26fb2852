"""`serve --tls-cert --tls-key`: files that cannot serve are refused at the start, in one line that says why."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load_key
from django.core.management import CommandError, call_command

from gateway_site.server import renewal, tls


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name → path of PEM files, good and bad."""
    directory, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    own, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    old = authority.issue_cert("localhost", not_after=datetime.now(UTC) - timedelta(days=1))
    soon = authority.issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=3))
    key = own.private_key_pem.bytes()
    locked = load_key(key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    contents = {
        "chain": b"".join(blob.bytes() for blob in own.cert_chain_pems),
        "key": key,
        "other key": other.private_key_pem.bytes(),
        "locked": locked,
        "ended": old.cert_chain_pems[0].bytes(),
        "ended key": old.private_key_pem.bytes(),
        "soon": soon.cert_chain_pems[0].bytes(),
        "soon key": soon.private_key_pem.bytes(),
        "broken": b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n",
        "text": b"hello",
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return {name: str(directory / name) for name in [*contents, "missing"]} | {"directory": str(directory)}


def test_a_certificate_with_its_key_is_taken(files):
    assert tls.check(files["chain"], files["key"]) == ""


@pytest.mark.parametrize(
    ("certificate", "key", "says"),
    [
        ("missing", "key", r"--tls-cert: .*missing cannot be read \(No such file or directory\)"),
        ("chain", "missing", r"--tls-key: .*missing cannot be read"),
        ("directory", "key", r"--tls-cert: .* cannot be read \(Is a directory\)"),
        ("text", "key", "--tls-cert: .* holds no certificate in PEM"),
        ("key", "chain", "--tls-cert: .* holds no certificate in PEM"),
        ("chain", "text", "--tls-key: .* holds no private key in PEM"),
        ("chain", "other key", "is not the key of the first certificate"),
        ("chain", "locked", "wants a passphrase. Take it off: openssl pkey"),
        ("broken", "key", "OpenSSL cannot use them"),
    ],
)
def test_what_cannot_serve_is_refused(files, certificate, key, says):
    with pytest.raises(tls.BadCertificate, match=says) as refused:
        tls.check(files[certificate], files[key])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "verb"), [("ended", "ended at"), ("soon", "ends at")])
def test_a_certificate_that_ends_is_warned_of(files, name, verb):
    assert verb in tls.check(files[name], files[f"{name} key"])


@pytest.mark.parametrize("options", [{"tls_cert": "x"}, {"tls_key": "x"}, {"tls_cert": "/missing", "tls_key": "x"}])
def test_serve_refuses_before_it_touches_the_database(options):
    with pytest.raises(CommandError, match="--tls-"):
        call_command("serve", port=1, **options)


def test_a_pair_that_does_not_fit_is_told_once_and_a_good_one_is_taken(files, tmp_path):
    chain, key = tmp_path / "chain", tmp_path / "key"
    chain.write_bytes(Path(files["chain"]).read_bytes())
    key.write_bytes(Path(files["key"]).read_bytes())
    watched = renewal.Files(str(chain), str(key))
    assert watched.renewed() is None
    key.write_bytes(Path(files["other key"]).read_bytes())
    with pytest.raises(tls.BadCertificate, match="is not the key"):
        watched.renewed()
    assert watched.renewed() is None
    key.write_bytes(Path(files["key"]).read_bytes())
    assert watched.renewed() is not None
    assert watched.renewed() is None
