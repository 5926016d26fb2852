"""The forms in which the environment names a server, and how the gateway recognises itself among them (N11)."""

import pytest

from proxy.default_backend import leads_to_us, meant_url


@pytest.mark.parametrize(
    ("text", "port", "url"),
    [
        ("localhost", 0, "http://localhost:11434"),
        ("gpu", 11500, "http://gpu:11500"),
        ("gpu:9999", 11500, "http://gpu:9999"),
        ("10.0.0.5", 0, "http://10.0.0.5:11434"),
        ("0.0.0.0", 0, "http://127.0.0.1:11434"),
        ("0.0.0.0:11435", 0, "http://127.0.0.1:11435"),
        ("http://0.0.0.0:11435", 0, "http://127.0.0.1:11435"),
        ("[::]:11435", 0, "http://[::1]:11435"),
        ("::1", 0, "http://[::1]:11434"),
        ("[::1]", 7, "http://[::1]:7"),
        (":11435", 0, "http://127.0.0.1:11435"),
        ("http://gpu", 0, "http://gpu:80"),
        ("https://gpu", 0, "https://gpu:443"),
        ("https://gpu", 8443, "https://gpu:8443"),
        ("https://gpu:1/", 8443, "https://gpu:1"),
        (" http://gpu:11434 ", 0, "http://gpu:11434"),
        ('"gpu:1"', 0, "http://gpu:1"),
    ],
)
def test_every_form_of_ollama_host_is_understood(text, port, url):
    assert meant_url(text, port) == url


@pytest.mark.parametrize(
    "text",
    [
        *("unix:///run/ollama.sock", "ftp://gpu", "http://user:pw@gpu", "http://gpu/api", "http://gpu?x=1", "a b"),
        *("gpu:99999", "gpu:x", "http://", "169.254.169.254", "2130706433", "http://gpu:0"),
    ],
)
def test_b14_what_cannot_be_a_backend_is_refused(text):
    with pytest.raises(ValueError, match=r"\S"):
        meant_url(text)


@pytest.mark.parametrize(
    ("url", "host", "port", "ours"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("http://localhost:8080", "127.0.0.1", 8080, True),
        ("http://127.0.0.1:8080", "0.0.0.0", 8080, True),
        ("http://localhost:8080", "::", 8080, True),
        ("http://127.0.0.1:8081", "0.0.0.0", 8080, False),
        ("http://192.0.2.1:8080", "0.0.0.0", 8080, False),
        ("http://127.0.0.2:8080", "127.0.0.1", 8080, False),
        ("http://no-such-name.invalid:8080", "127.0.0.1", 8080, False),
        ("http://127.0.0.1:8080", "127.0.0.1", 0, False),
    ],
)
def test_n11_the_gateway_knows_its_own_address(url, host, port, ours):
    assert leads_to_us(url, host, port) is ours
