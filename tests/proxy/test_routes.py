"""Rows P1–P3: the routes that exist are those of one table, by the bytes of their paths."""

import re
from pathlib import Path

import pytest

from proxy.cors import EXPOSED_HEADERS
from proxy.dialects import ANTHROPIC
from proxy.fake_ollama import routing
from proxy.routes import _WITH_PARAMETER, ROUTES, Kind, Right, belongs_to_calls, find
from tests.proxy.odd_paths import MANAGEMENT, odd_spellings

# A new kind or route is added here by whoever adds it, knowingly.
TENANT_ROUTES = {
    *("GET /", "HEAD /", "GET /api/version", "HEAD /api/version", "GET /api/tags", "HEAD /api/tags", "GET /api/ps"),
    "GET /api/status",
    *("POST /api/show", "POST /api/chat", "POST /api/generate", "POST /api/embed", "POST /api/embeddings"),
}


def test_p1_every_route_of_a_tenant_is_one_that_was_meant():
    for path, methods in ROUTES.items():
        for method, route in methods.items():
            if route.right is not Right.MANAGE and path.startswith((b"/api", b"/config")):
                assert f"{method} {path.decode()}" in TENANT_ROUTES


def test_every_route_is_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    paths = {route.path for methods in ROUTES.values() for route in methods.values()}
    paths |= {route.path for route in _WITH_PARAMETER}
    assert not {path for path in paths if not re.search(rf"[` ]{re.escape(path)}`", text)}


def test_every_header_that_pages_may_read_is_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text().partition("| Header of an answer |")[2]
    assert "`x-ratelimit-limit-*`, `-remaining-*`, `-reset-*`" in text
    names = {name for name in EXPOSED_HEADERS if not name.startswith("x-ratelimit-")}
    names |= {name.decode() for name in ANTHROPIC.id_headers}
    assert not {name for name in names if f"`{name}`" not in text}


def test_p2_management_needs_the_right_to_manage():
    for method, path in MANAGEMENT:
        route = find(path.encode())[0].get(method)
        assert route is None or route.right is Right.MANAGE or route.kind is Kind.STATUS, path


@pytest.mark.parametrize("path", [*(path for _, path in MANAGEMENT), "/api/chat", "/api/tags", "/api/generate"])
def test_p3_another_spelling_of_a_path_is_another_path(path):
    for spelling in odd_spellings(path):
        methods, parameter = find(spelling)
        # What is in the place of a digest is parsed, and refused unless it is one.
        assert not methods or (path.startswith("/api/blobs/") and parameter != path.rpartition("/")[2]), spelling


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        (b"/api/blobs/sha256:00", "sha256:00"),
        (b"/api/blobs/%00", "%00"),
        (b"/v1/models/llama3.2:1b", "llama3.2:1b"),
        (b"/v1/models/a%2Fb", "a%2Fb"),
        *(
            (path, None)
            for path in (b"/api/blobs/", b"/api/blobs", b"/api/blobs/a/b", b"/api//blobs/a", b"/v1/models/")
        ),
        *((path, None) for path in (b"/v1/models/user/m", b"/api/Blobs/a", b"//v1/models/a", b"/v1/./models/a")),
    ],
)
def test_p3_a_parameter_is_one_segment_as_it_came(path, parameter):
    methods, found = find(path)
    assert (found if methods else None) == parameter


def test_p3_the_odd_spellings_are_those_that_ollama_might_serve():
    """Else the rows above prove nothing: some of them decode to the path itself."""
    decoded = [routing.decoded_path(spelling.decode("latin-1")) for spelling in odd_spellings("/api/delete")]
    assert decoded.count("/api/delete") >= 4


def test_p4_the_request_line_of_a_backend_is_a_constant_of_the_table():
    for path, methods in ROUTES.items():
        for method, route in methods.items():
            assert route.upstream in (b"", f"{method} ".encode() + path) or path.startswith(b"/v1")
            assert b"?" not in route.upstream


@pytest.mark.parametrize("path", [b"/api/", b"/api", b"/api/x", b"/v1/x", b"/k/x/api/chat", b"/api/../admin/", b"/"])
def test_p1_paths_of_calls_are_answered_by_the_data_plane(path):
    assert belongs_to_calls(path)


@pytest.mark.parametrize("path", [b"/admin/", b"/livez", b"/metrics", b"/apix", b"/%61pi/chat", b"//api/chat", b""])
def test_p1_other_paths_never_reach_it(path):
    assert not belongs_to_calls(path)
