"""The way to a backend in the admin: what is secret is written and never read, and what cannot work is said."""

import pytest
import trustme
from django.urls import reverse
from pytest_django.asserts import assertNotContains

from proxy.credentials import unseal
from proxy.models import Backend
from proxy.rules_watch import backend_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def signed_in(client, root):
    client.force_login(root)
    return client


@pytest.fixture(scope="module")
def pair():
    """(certificate, key) in PEM."""
    issued = trustme.CA().issue_cert("gateway.example")
    return "".join(blob.bytes().decode() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes().decode()


def form(**more):
    return {"name": "gpu", "url": "https://10.0.0.5:11434", "slots": "1", "transport": "httpx", "enabled": "on", **more}


def url_of(view, *args):
    return reverse(f"admin:proxy_backend_{view}", args=args)


def test_t3_secrets_of_the_way_are_written_and_never_read(signed_in, pair):
    certificate, key = pair
    filled = form(proxy_url="http://10.0.0.9:3128", proxy_credential="bob:hunter2", client_certificate=certificate,
                  client_key=key, http2="on")  # fmt: skip
    signed_in.post(url_of("add"), filled)
    row = Backend.objects.get()
    assert unseal(row.proxy_credential_encrypted) == "bob:hunter2"
    assert b"hunter2" not in bytes(row.proxy_credential_encrypted)
    assert b"PRIVATE KEY" not in bytes(row.client_key_encrypted)
    for page in (url_of("changelist"), url_of("change", row.pk), url_of("history", row.pk)):
        answer = signed_in.get(page)
        assertNotContains(answer, "hunter2")
        assertNotContains(answer, "PRIVATE KEY")

    known = backend_of(row)
    assert (known.proxy_url, known.proxy_credential, known.http2) == (
        "http://10.0.0.9:3128",
        (b"bob", b"hunter2"),
        True,
    )
    assert known.client_key.strip() == key.strip()
    for secret in ("hunter2", "PRIVATE KEY"):
        assert secret not in repr(known)


def test_what_is_left_empty_stays_and_goes_with_what_it_belongs_to(signed_in, pair):
    certificate, key = pair
    way = {"proxy_url": "http://10.0.0.9:3128", "client_certificate": certificate}
    signed_in.post(url_of("add"), form(**way, proxy_credential="bob:hunter2", client_key=key))
    row = Backend.objects.get()
    signed_in.post(url_of("change", row.pk), form(**way, slots="3"))
    row.refresh_from_db()
    assert (row.slots, unseal(row.proxy_credential_encrypted)) == (3, "bob:hunter2")
    assert unseal(row.client_key_encrypted) == key.strip()
    signed_in.post(url_of("change", row.pk), form())
    row.refresh_from_db()
    assert (row.proxy_credential_encrypted, row.client_key_encrypted) == (None, None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"proxy_url": "socks5://10.0.0.9:1080"}, "Begin with http:// or https://"),
        ({"proxy_url": "http://169.254.169.254"}, "cannot be a backend"),
        ({"proxy_url": "http://bob:hunter2@10.0.0.9:3128"}, "field of its own"),
        ({"proxy_credential": "bob:hunter2"}, "Name the proxy"),
        ({"proxy_url": "http://10.0.0.9:3128", "proxy_credential": "hunter2"}, "user:password"),
        ({"proxy_url": "http://10.0.0.9:3128", "transport": "wire"}, "need the transport httpx"),
        ({"http2": "on", "transport": "wire"}, "need the transport httpx"),
        ({"client_certificate": "nonsense"}, "PEM"),
        ({"client_key": "nonsense"}, "needs its certificate"),
    ],
)
def test_b14_a_way_that_cannot_be_is_refused_with_what_to_do(signed_in, fields, says):
    answer = signed_in.post(url_of("add"), form(**fields))
    assert (answer.status_code, Backend.objects.count()) == (200, 0)
    assert says in answer.content.decode()


def test_a_certificate_without_its_key_is_refused(signed_in, pair):
    certificate, _ = pair
    other = trustme.CA().issue_cert("other.example").private_key_pem.bytes().decode()
    for key in ("", other):
        answer = signed_in.post(url_of("add"), form(client_certificate=certificate, client_key=key))
        assert "belong together" in answer.content.decode()
    assert not Backend.objects.exists()
