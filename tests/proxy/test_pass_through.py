"""Pass-through routes: which there may be, and how answers that nobody knows are counted."""

import pytest

from proxy.metering import passed
from proxy.pass_through import NATIVE, OPENAI, names_a_model, refuse, route, table
from proxy.routes import ROUTES, Kind, Right
from tests.proxy.odd_paths import MANAGEMENT, odd_spellings


@pytest.mark.parametrize(
    "path", ["/api/rerank", "/v1/rerank", "/api/models/tokenize", "/v1/audio/speech", "/api/v2.1/x_y-z~"]
)
def test_a_new_path_may_be_added(path):
    refuse(path, "POST", "infer")
    refuse(path, "GET", "list")
    refuse(path, "DELETE", "manage")


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/api", "/api/", "api/rerank", "/rerank", "/admin/x", "/metrics", "/k/key/api/rerank",
        "/api//rerank", "/api/rerank/", "/api/../rerank", "/api/./rerank", "/api/.hidden", "/api/re rank",
        "/api/rerank?x=1", "/api/rerank#x", "/api/%72erank", "/api/rerank\n", "/api/*", "/api/{id}", "/api/é",
        "/API/rerank", "/manage/api/keys", "/api/" + "x" * 60, "/api" + "/x" * 9,
    ],
)  # fmt: skip
def test_p3_what_is_no_exact_path_below_ours_is_refused(path):
    with pytest.raises(ValueError, match="Write an exact path"):
        refuse(path, "POST", "manage")


@pytest.mark.parametrize("path", [path.decode() for path in ROUTES if path != b"/"] + ["/v1/models/x", "/api/blobs/x"])
def test_p1_a_path_of_ours_cannot_be_replaced_by_no_method(path):
    for method in ("GET", "POST", "DELETE"):
        with pytest.raises(ValueError, match="the gateway's own"):
            refuse(path, method, "manage")


@pytest.mark.parametrize(
    "path", ["/api/v2/pull", "/api/delete/all", "/v1/experimental/x", "/api/Copy", "/api/me", "/api/x/web_fetch"]
)
def test_p2_what_looks_like_management_is_only_for_keys_that_manage(path):
    for right in ("infer", "list"):
        with pytest.raises(ValueError, match="looks like the management"):
            refuse(path, "POST", right)
    refuse(path, "POST", "manage")


def test_p2_no_known_management_route_can_be_opened_to_others():
    for method, path in MANAGEMENT:
        for right in ("infer", "list"):
            with pytest.raises(ValueError):
                refuse(path, method if method in ("GET", "POST", "DELETE") else "POST", right)


def test_p2_nothing_is_deleted_by_keys_that_do_not_manage():
    with pytest.raises(ValueError, match="looks like the management"):
        refuse("/api/rerank", "DELETE", "infer")


def test_p3_another_spelling_is_not_in_the_table():
    found = table([route("/api/rerank", "POST", "infer", names_model=True)])
    assert found[b"/api/rerank"]["POST"].upstream == b"POST /api/rerank"
    for spelling in odd_spellings("/api/rerank"):
        assert spelling not in found


def test_a_route_is_made_as_its_row_says():
    made = route("/v1/rerank", "POST", "infer", names_model=True)
    assert (made.kind, made.right, made.endpoint) == (Kind.PASSED, Right.INFER, OPENAI)
    assert route("/api/rerank", "POST", "list", names_model=True).endpoint is NATIVE
    assert route("/api/rerank", "GET", "manage", names_model=False).endpoint is None


@pytest.mark.parametrize("name", ["model", "MODEL", "Name", "mo\u0064el"])
def test_j1_a_model_is_named_in_any_case(name):
    assert names_a_model({name: "x"})
    assert not names_a_model({"query": {"model": "x"}})


@pytest.mark.parametrize(
    ("kind", "raw", "tokens"),
    [
        (b"application/json", b'{"usage":{"prompt_tokens":7,"completion_tokens":3}}', (7, 3, False)),
        (b"application/json", b'{"prompt_eval_count":7,"eval_count":3}', (7, 3, False)),
        (b"application/json", b'{"response":"12345678"}', (10, 2, True)),
        (b"application/json", b"[1,2,3,4]", (10, 3, True)),
        (b"text/plain", b"a text of some length", (10, 6, True)),
        (b"application/x-ndjson", b'{"x":1}\n{"prompt_eval_count":7,"eval_count":3}\n', (7, 3, False)),
        (b"application/x-ndjson", b'{"x":1}\n{"x":2}\n', (10, 2, True)),
        (
            b"text/event-stream",
            b'data: {"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\ndata: [DONE]\n\n',
            (7, 3, False),
        ),
    ],
)
def test_u3_an_answer_that_nobody_knows_is_counted_as_far_as_it_can_be(kind, raw, tokens):
    for size in (1, 7, len(raw)):
        meter = passed.meter(kind, 40)
        out = b"".join(meter.feed(raw[at : at + size]) for at in range(0, len(raw), size))
        meter.finish()
        counts = meter.counts()
        assert out == raw
        assert meter.complete
        assert (counts.prompt_tokens, counts.completion_tokens, counts.estimated) == tokens


def test_what_generates_nothing_costs_nothing():
    for kind in (b"application/json", b"application/x-ndjson"):
        meter = passed.idle_meter(kind)
        meter.feed(b'{"eval_count":9}\n' * 9)
        meter.finish()
        counts = meter.counts()
        assert (counts.prompt_tokens, counts.completion_tokens, counts.estimated) == (0, 0, False)
