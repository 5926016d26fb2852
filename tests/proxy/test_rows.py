"""U4, U8, U10: what a record holds, from the call to the row."""

import ipaddress
import time
from types import SimpleNamespace
from uuid import UUID

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.call import Call, Ids
from proxy.dialects import ollama
from proxy.ledger import rows
from proxy.ledger.rows import AT, COLUMNS
from proxy.metering import AnswerMeter, LineMeter
from proxy.routes import ROUTES
from tests.proxy.spooled import NOON, make_row, opened_row, value
from usage.costs import MAX_COST, PriceRow, cost_nano
from usage.models import UsageRecord

PRICE = PriceRow(7, "*", None, "", input_nano=3_000_000, output_nano=5_000_000, gpu_second_nano=11, kwh_nano=0, watts=0)


def make_call(**fields):
    call = Call(Ids().new(NOON), "POST", b"/api/chat", ipaddress.ip_address("192.0.2.1"), time.time())
    call.route = ROUTES[b"/api/chat"]["POST"]
    call.key = SimpleNamespace(id=3, name="key", tenant_id=1, tenant_name="acme", user_id=2, user_name="alice")
    call.model = SimpleNamespace(served=SimpleNamespace(canonical="llama3.2:latest"))
    call.asked, call.stream, call.bytes_in, call.prompt_bytes = "llama3.2", True, 41, 41
    for name, content in fields.items():
        setattr(call, name, content)
    return call


def ended(meter, **fields):
    call = make_call(**fields)
    row = rows.opened(call, "EUR")
    call.status, call.outcome, call.attempts = 200, "ok", 1
    call.backend = SimpleNamespace(name="one")
    call.dispatched_at = time.monotonic()
    call.meter = meter
    return rows.closed(row, call)


def metered(final, lines=3):
    meter = LineMeter(ollama.usage, 400)
    for _ in range(lines):
        meter.feed(b'{"message":{"content":"x"},"done":false}\n')
    meter.feed(orjson.dumps({"done": True, **final}) + b"\n")
    meter.finish()
    return meter


def test_u2_a_row_has_all_columns_of_the_record_and_its_id_is_ours():
    fields = {field.column for field in UsageRecord._meta.concrete_fields}
    assert set(COLUMNS) == fields
    call = make_call(client_request_id="mine")
    row = rows.opened(call, "EUR")
    assert len(row) == len(COLUMNS)
    assert (value(row, "id"), value(row, "client_request_id")) == (call.id, "mine")
    assert value(row, "id") != "mine"


def test_u2_ids_sort_by_time_and_never_repeat():
    ids = Ids()
    made = [ids.new(NOON + second) for second in range(1000)]
    assert made == sorted(made)
    assert len({each.new(NOON) for each in (ids, Ids()) for _ in range(10_000)}) == 20_000
    assert {UUID(one).version for one in made} == {7}


def test_u2_the_counted_part_of_an_id_wraps_without_repeating():
    ids = Ids()
    ids._tail = 0x3FFFFFFFFFFFFFFFFFF - 5
    made = {ids.new(NOON) for _ in range(10)}
    assert len(made) == 10
    assert all(UUID(one).version == 7 and UUID(one).variant == "specified in RFC 4122" for one in made)


def test_u4_reported_counts_are_taken_over():
    row = ended(metered({"prompt_eval_count": 12, "eval_count": 34, "load_duration": 5_000, "eval_duration": 7_000}))
    names = ("prompt_tokens", "completion_tokens", "estimated", "load_us", "decode_us", "error")
    assert [value(row, name) for name in names] == [12, 34, False, 5, 7, ""]


@pytest.mark.parametrize(
    ("final", "error"),
    [
        ({}, ""),
        ({"prompt_eval_count": 5}, ""),
        ({"prompt_eval_count": -1, "eval_count": 3}, "odd_usage"),
        ({"prompt_eval_count": 5, "eval_count": 10**12}, "odd_usage"),
        ({"prompt_eval_count": 5, "eval_count": "34"}, "odd_usage"),
        ({"prompt_eval_count": 5, "eval_count": 3.5}, "odd_usage"),
        ({"prompt_eval_count": 5, "eval_count": True}, "odd_usage"),
        ({"prompt_eval_count": 5, "eval_count": 3, "eval_duration": 10**17}, "odd_usage"),
        ({"prompt_eval_count": [5], "eval_count": {}}, "odd_usage"),
    ],
)
def test_u4_absurd_and_missing_counts_become_flagged_estimates(final, error):
    row = ended(metered(final))
    assert value(row, "estimated")
    assert value(row, "error") == error
    assert value(row, "completion_tokens") == 3
    assert value(row, "prompt_tokens") in (5, 100)
    orjson.dumps(row)


numbers = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=2)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["prompt_eval_count", "eval_count", "load_duration", "eval_duration"]), numbers))
def test_u4_whatever_is_reported_fits_the_columns(final):
    meter = metered(orjson.loads(orjson.dumps(final, option=orjson.OPT_PASSTHROUGH_SUBCLASS)) if _fits(final) else {})
    row = ended(meter)
    for name in ("prompt_tokens", "completion_tokens", "load_us", "prefill_us", "decode_us"):
        assert type(value(row, name)) is int
        assert 0 <= value(row, name) <= 10**12
    assert value(row, "completion_tokens") > 0


def _fits(final):
    try:
        orjson.dumps(final)
    except TypeError:
        return False  # beyond 64 bits: no JSON that a test could write
    return True


def test_u3_text_without_counts_is_never_zero():
    answer = AnswerMeter(ollama.usage, 400)
    answer.feed(b'{"message":{"content":"twelve bytes"},"done":true}')
    answer.finish()
    row = ended(answer)
    assert (value(row, "completion_tokens"), value(row, "estimated")) == (3, True)


def test_u8_the_price_at_the_start_decides_the_cost():
    row = ended(metered({"prompt_eval_count": 10**6, "eval_count": 1, "eval_duration": 10**9}), price=PRICE)
    assert value(row, "price_id") == 7
    assert value(row, "cost_nano") == cost_nano(PRICE, 10**6, 1, 10**6) == 3_000_000 + 5 + 11
    assert value(ended(metered({})), "cost_nano") is None


def test_u8_a_slip_in_a_price_does_not_leave_the_column():
    absurd = PriceRow(7, "*", None, "", output_nano=2**63 - 1)
    row = ended(metered({"prompt_eval_count": 1, "eval_count": 10**8}), price=absurd)
    assert value(row, "cost_nano") == MAX_COST
    orjson.dumps(row)


def test_u1_what_a_dead_process_left_open_is_priced_and_estimated():
    row = opened_row()
    done = rows.interrupted(row, PRICE, (NOON + 2.5, 40, 4000, "two"))
    names = ("outcome", "completion_tokens", "backend", "bytes_out", "finished_at", "total_us", "cost_nano")
    expected = ["interrupted", 40, "two", 4000, NOON + 2.5, 2_500_000, cost_nano(PRICE, 10, 40, 0)]
    assert [value(done, name) for name in names] == expected


def test_u10_progress_is_timed_by_the_clock_that_does_not_step(monkeypatch):
    call = make_call()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    note = rows.note(call)
    assert note[0] == call.id
    assert 0 <= note[1] - call.started_epoch < 5


@pytest.mark.parametrize("price", [None, PRICE])
def test_u1_a_price_survives_the_spool(price):
    entry = orjson.loads(orjson.dumps(rows.price_entry(price)))
    again = rows.price_of_entry(entry)
    row = make_row()
    assert rows.cost_of(row, again) == rows.cost_of(row, price)
    assert AT["id"] == 0


def held(*limits):
    """As (id, used and held, amount)."""
    return SimpleNamespace(held=[(SimpleNamespace(id=pk, amount=most), None, 1, total) for pk, total, most in limits])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {}),
        ({"chosen": (True, 0, 1)}, {"warm": True, "busy": 0, "of": 1}),
        ({"chosen": (False, 3, 2), "reservation": held()}, {"warm": False, "busy": 3, "of": 2}),
        ({"reservation": held((7, 30, 100))}, {"limits": [[7, 30, 100]]}),
        ({"failed_attempts": [("one", "busy")]}, {"failed": [["one", "busy"]]}),
    ],
)  # fmt: skip
def test_why_this_backend_stands_on_the_record(said, expected):
    written = value(ended(metered({}), **said), "routing")
    assert (orjson.loads(written) if written else {}) == expected


def test_what_is_said_of_the_routing_is_bounded():
    many = held(*((10**12 + number, 2**62, 2**62) for number in range(100)))
    told = {"chosen": (True, 10**6, 10**6), "failed_attempts": [("é" * 100, "lacks_model")], "reservation": many}
    routing = rows.routing_of(make_call(**told))
    assert len(routing.encode()) <= rows.ROUTING_BYTES
    assert orjson.loads(routing)["failed"] == [["é" * 100, "lacks_model"]]


def test_the_routing_of_an_ordinary_call_costs_next_to_nothing():
    call = make_call(chosen=(True, 3, 2), reservation=held())
    rounds = 20_000
    took = min(timed(lambda: rows.routing_of(call), rounds) for _ in range(5)) / rounds
    print(f"routing of a call: {1e6 * took:.2f} µs")
    assert took < 20e-6  # the bar is 1 µs, on a quiet machine


def timed(work, rounds):
    began = time.process_time()
    for _ in range(rounds):
        work()
    return time.process_time() - began


def test_s8_rows_that_an_older_version_left_in_the_spool_are_completed():
    row = make_row()
    assert rows.completed(row) is row
    assert rows.completed(row[: AT["routing"]]) == row
