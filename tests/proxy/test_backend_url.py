"""Which addresses may be a backend (B14)."""

import socket
from ipaddress import ip_address

import pytest
from django.core.exceptions import ValidationError

from proxy.backend_url import normalise_backend_url, refuse_address, validate_backend_url
from proxy.fleet.probes import resolve

GOOD = [
    ("http://10.0.0.5:11434", "http://10.0.0.5:11434"),
    (" http://10.0.0.5:11434/ ", "http://10.0.0.5:11434"),
    ("HTTP://Gpu-1.Example.com", "http://gpu-1.example.com:80"),
    ("https://gpu-1.example.com", "https://gpu-1.example.com:443"),
    ("http://localhost:11434", "http://localhost:11434"),
    ("http://ollama_1:11434", "http://ollama_1:11434"),
    ("http://[::1]:11434", "http://[::1]:11434"),
    ("http://[2001:db8::7]", "http://[2001:db8::7]:80"),
    ("http://[::ffff:10.0.0.5]:11434", "http://[::ffff:10.0.0.5]:11434"),
    ("http://0x7f.example", "http://0x7f.example:80"),
    ("http://gpu.example.com.:11434", "http://gpu.example.com.:11434"),
    ("http://1.gpu:11434", "http://1.gpu:11434"),
]
BAD = [
    "",
    "10.0.0.5:11434",
    "//10.0.0.5",
    "file:///etc/passwd",
    "ftp://10.0.0.5",
    "gopher://10.0.0.5:70/1",
    "unix:///var/run/docker.sock",
    "javascript:alert(1)",
    "http://",
    "http://:11434",
    "http:///x",
    "http://user@10.0.0.5",
    "http://user:secret@10.0.0.5",
    "http://@10.0.0.5",
    "http://10.0.0.5/api",
    "http://10.0.0.5/;x",
    "http://10.0.0.5?x=1",
    "http://10.0.0.5/?",
    "http://10.0.0.5#x",
    "http://10.0.0.5#",
    "http://10.0.0.5:0",
    "http://10.0.0.5:65536",
    "http://10.0.0.5:x",
    "http://10.0.0.5:-1",
    "http://a b:80",
    "http://a%00b",
    "http://a%2eb",
    "http://a\\b",
    "http://a\x01b",
    'http://a"b',
    "http://a;b",
    "http://a,b",
    "http://ex\u00e4mple.com",
    "http://\u2460.example",
    # addresses in disguise
    "http://2130706433",
    "http://0x7f000001",
    "http://0x7f.0.0.1",
    "http://0177.0.0.1",
    "http://127.1",
    "http://127.0.1",
    "http://010.0.0.5",
    "http://10.0.0.5.",
    "http://169.254.169.254.",
    "http://x.0x7f",
    "http://2852039166",
    "http://0xA9FEA9FE",
    "http://169.254.43518",
    # where clouds tell secrets, and what is no machine
    "http://169.254.169.254",
    "http://169.254.0.1:11434",
    "http://100.100.100.200",
    "http://192.0.0.192",
    "http://168.63.129.16",
    "http://0.0.0.0:11434",
    "http://224.0.0.1",
    "http://255.255.255.255",
    "http://[::]",
    "http://[fe80::1]",
    "http://[fe80::1%25eth0]",
    "http://[fe80::1%eth0]",
    "http://[ff02::1]",
    "http://[fd00:ec2::254]",
    "http://[::ffff:169.254.169.254]",
    "http://[::ffff:a9fe:a9fe]",
    "http://[::169.254.169.254]",
    "http://[64:ff9b::a9fe:a9fe]",
    "http://[2002:a9fe:a9fe::1]",
    "http://[::1",
    "http://::1",
    "http://[10.0.0.5]",
]


@pytest.mark.parametrize(("written", "meant"), GOOD)
def test_b14_addresses_of_machines_are_taken(written, meant):
    assert normalise_backend_url(written) == meant
    assert normalise_backend_url(meant) == meant
    validate_backend_url(written)


@pytest.mark.parametrize("url", BAD)
def test_b14_everything_else_is_refused_with_a_reason(url):
    with pytest.raises(ValueError) as refused:
        normalise_backend_url(url)
    assert str(refused.value)
    with pytest.raises(ValidationError):
        validate_backend_url(url)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.5", "192.168.1.1", "8.8.8.8", "::1", "fd00::1", "2001:db8::1"]
)
def test_b14_private_and_public_addresses_may_be_backends(address):
    refuse_address(ip_address(address))


@pytest.fixture
def names(monkeypatch):
    """A resolver of the test's own: name → addresses."""
    known = {}

    def getaddrinfo(host, port, *args, **kwargs):
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


async def test_b14_a_name_is_judged_by_all_of_its_addresses_each_time(names):
    names["gpu.example"] = ["10.0.0.5", "10.0.0.6", "10.0.0.5"]
    assert await resolve("http://gpu.example:11434") == ("10.0.0.5", "10.0.0.6")
    names["gpu.example"] = ["10.0.0.5", "169.254.169.254"]
    with pytest.raises(ValueError, match="link-local"):
        await resolve("http://gpu.example:11434")
    names["gpu.example"] = ["fe80::1%eth0"]
    with pytest.raises(ValueError, match="link-local"):
        await resolve("http://gpu.example:11434")
    del names["gpu.example"]
    with pytest.raises(OSError):
        await resolve("http://gpu.example:11434")
