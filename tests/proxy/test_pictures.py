"""What a person may see of calls in flight, however many there are and in however many processes."""

import time
from types import SimpleNamespace

import pytest

from proxy.errors import Interruption
from proxy.live.pictures import CALLS_SHOWN, CALLS_SHOWN_PER_KEY, Viewer, find, picture_of, seen_by
from proxy.live.sockets import is_own_origin

STAFF = Viewer(1, "root", sees_all=True, sees_backends=True, ends_all=True)


def call(number, key=1, tenant=1, user=None, **fields):
    defaults = {
        "id": f"{number:032x}",
        "key": SimpleNamespace(
            id=key, prefix=f"p{key}", name=f"key {key}", tenant_id=tenant, tenant_name=f"tenant {tenant}",
            user_id=user, user_name=f"user {user}" if user else "",
        ),
        "meter": None,
        "asked": "llama3.2",
        "route": SimpleNamespace(path="/api/chat"),
        "backend": None,
        "first_byte_at": 0.0,
        "deadline_reason": Interruption.LINE,
        "started_at": time.monotonic() - 1000 + number,
    }  # fmt: skip
    return SimpleNamespace(**{**defaults, **fields})


def picture(*calls, worker="a", backends=()):
    return picture_of(worker, calls, backends)


def backend(name, **fields):
    row = {"name": name, "state": "up", "problem": "", "version": "", "warm": [], "in_flight": 0, "slots": 4}
    return {**row, **fields}


def test_a_flood_of_calls_makes_no_huge_picture_and_hides_no_other_key():
    flood = [call(number, key=1, tenant=1) for number in range(5000)]
    late = call(9000, key=2, tenant=2)
    seen = seen_by(STAFF, [picture(*flood, late)], alone=False)
    assert len(seen["calls"]) == CALLS_SHOWN_PER_KEY + 1
    assert seen["hidden"] == 5000 - CALLS_SHOWN_PER_KEY
    of_two = seen_by(Viewer(5, "two", sees=frozenset({2})), [picture(*flood, late)], alone=False)
    assert ([row["id"] for row in of_two["calls"]], of_two["hidden"]) == ([late.id], 0)


def test_there_are_never_more_rows_than_a_picture_may_have_and_the_oldest_stay():
    calls = [call(number, key=number) for number in range(CALLS_SHOWN + 50)]
    rows = picture(*reversed(calls))["calls"]
    assert [row["id"] for row in rows] == [each.id for each in calls[:CALLS_SHOWN]]


@pytest.mark.parametrize(
    ("viewer", "sees", "ends"),
    [
        (STAFF, {1, 2, 3, 4}, {1, 2, 3, 4}),
        (Viewer(9, "stan", sees_all=True), {1, 2, 3, 4}, set()),
        (Viewer(10, "owner", sees=frozenset({1}), ends=frozenset({1}), belongs_to=frozenset({1})), {1, 2}, {1, 2}),
        (Viewer(10, "viewer", sees=frozenset({1})), {1, 2}, set()),
        (Viewer(10, "member", belongs_to=frozenset({1})), {1}, {1}),
        # Whoever left a tenant has nothing to do with the keys they had there.
        (Viewer(10, "gone"), set(), set()),
    ],
    ids=lambda value: value.name if isinstance(value, Viewer) else "",
)
def test_who_sees_and_who_ends(viewer, sees, ends):
    calls = [
        call(1, key=1, tenant=1, user=10), call(2, key=2, tenant=1), call(3, key=3, tenant=2, user=10),
        call(4, key=4, tenant=2),
    ]  # fmt: skip
    rows = seen_by(viewer, [picture(*calls)], alone=False)["calls"]
    assert {int(row["id"], 16) for row in rows} == sees
    assert {int(row["id"], 16) for row in rows if row["may_end"]} == ends


def test_the_pictures_of_processes_become_one_with_the_worst_that_is_known_of_a_backend():
    one = {**picture(call(2)), "backends": [backend("x", warm=["a"], in_flight=1, version="0.9"), backend("y")]}
    two = {
        **picture(call(1), worker="b"),
        "backends": [backend("x", state="down", problem="refused", warm=["b"], in_flight=2)],
    }
    seen = seen_by(STAFF, [one, two], alone=True)
    assert [int(row["id"], 16) for row in seen["calls"]] == [1, 2]  # the oldest first
    assert (seen["workers"], seen["alone"]) == (2, True)
    x, y = seen["backends"]
    assert x == backend("x", state="down", problem="refused", warm=["a", "b"], in_flight=3, version="0.9")
    assert y["state"] == "up"
    for other in (Viewer(2, "member"), Viewer(3, "accountant", sees_all=True)):
        assert seen_by(other, [one, two], alone=True)["backends"] is None


def test_tokens_and_phases_of_a_call():
    now = time.monotonic()
    streaming = call(1, meter=SimpleNamespace(counted=50), first_byte_at=now - 5)
    begun = call(2, meter=SimpleNamespace(counted=1), first_byte_at=now)
    loading = call(3, deadline_reason=Interruption.FIRST_BYTE, meter=SimpleNamespace(counted=0))
    nobodys = call(5)
    nobodys.key = None
    rows = picture(streaming, begun, loading, call(4), nobodys)["calls"]
    assert [row["phase"] for row in rows] == ["streaming", "streaming", "loading", "line"]
    assert [row["tokens"] for row in rows] == [50, 1, 0, 0]
    assert rows[0]["rate"] == pytest.approx(10, abs=0.5)
    assert [row["rate"] for row in rows[1:]] == [None, None, None]
    assert find([{"calls": []}, {"calls": rows}], streaming.id) is rows[0]
    assert find([{"calls": rows}], "x") is None


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://gw.example:8080", "gw.example:8080", True),
        ("https://gw.example", "gw.example", True),  # TLS ends before us
        ("http://gw.example:9090", "gw.example:8080", False),
        ("https://evil.example", "gw.example", False),
        ("null", "gw.example", False),
        ("", "gw.example", False),
        ("", "", False),
        ("https://pages.example", "10.0.0.1:8080", True),  # trusted by the settings
        ("https://site.example", "10.0.0.1:8080", True),  # the site's own address
    ],
)
def test_t13_which_pages_are_our_own(settings, origin, host, own):
    settings.CSRF_TRUSTED_ORIGINS = ["https://pages.example"]
    settings.SITE_URL = "https://site.example"
    assert is_own_origin([(b"origin", origin.encode()), (b"host", host.encode())]) == own
