from datetime import UTC, datetime, timedelta
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tenants import money
from usage.costs import PriceRow, cost_nano, pick

T0 = datetime(2026, 1, 1, tzinfo=UTC)
TOKENS = st.integers(0, 10**9)


def price(model="m:latest", *, id=1, valid_from=T0, **fields):
    return PriceRow(id=id, model=model, valid_from=valid_from, **fields)


def test_u8_a_million_tokens_at_three_millionths_cost_three():
    row = price(output_nano=money.to_nano("0.000003") * 10**6)
    assert cost_nano(row, 0, 10**6, 0) == money.to_nano("3")
    assert sum(cost_nano(row, 0, 1, 0) for _ in range(10**6)) == money.to_nano("3")


def test_each_part_counts():
    row = price(
        input_nano=money.to_nano("0.15"),
        output_nano=money.to_nano("0.60"),
        gpu_second_nano=money.to_nano("0.0002"),
        kwh_nano=money.to_nano("0.30"),
        watts=350,
    )
    assert cost_nano(row, 1_000_000, 0, 0) == money.to_nano("0.15")
    assert cost_nano(row, 0, 2_000_000, 0) == money.to_nano("1.2")
    # An hour: 3600 GPU-seconds and 0.35 kWh.
    assert cost_nano(row, 0, 0, 3600 * 10**6) == money.to_nano("0.72") + money.to_nano("0.105")
    assert cost_nano(row, 0, 0, 0) == 0


def test_halves_are_rounded_to_even():
    assert [cost_nano(price(input_nano=500_000), tokens, 0, 0) for tokens in (1, 3, 5, 7)] == [0, 2, 2, 4]
    assert cost_nano(price(input_nano=500_001), 1, 0, 0) == 1
    assert cost_nano(price(input_nano=499_999), 1, 0, 0) == 0


@given(
    TOKENS, TOKENS, TOKENS, st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**10), st.integers(0, 2000)
)
def test_u8_the_cost_is_the_exact_sum_rounded_once(prompt, completion, gpu_us, input_nano, output_nano, kwh, watts):
    row = price(input_nano=input_nano, output_nano=output_nano, kwh_nano=kwh, watts=watts, gpu_second_nano=input_nano)
    exact = Fraction(prompt * input_nano + completion * output_nano + gpu_us * input_nano, 10**6)
    exact += Fraction(gpu_us * watts * kwh, 10**6 * 3_600_000)
    assert cost_nano(row, prompt, completion, gpu_us) == round(exact)


@given(st.lists(st.tuples(TOKENS, TOKENS), max_size=20), st.integers(0, 10**6), st.integers(0, 10**6))
def test_u8_the_sum_of_parts_is_the_whole(calls, input_micro, output_micro):
    """For prices of whole nano-units a token, however the tokens are cut into calls."""
    row = price(input_nano=input_micro * 10**6, output_nano=output_micro * 10**6)
    whole = cost_nano(row, sum(call[0] for call in calls), sum(call[1] for call in calls), 0)
    assert sum(cost_nano(row, *call, 0) for call in calls) == whole


@given(st.lists(TOKENS, max_size=20), st.integers(0, 10**12))
def test_u8_rounding_is_off_by_half_a_nano_unit_a_call_at_most(calls, input_nano):
    row = price(input_nano=input_nano)
    parts = sum(cost_nano(row, tokens, 0, 0) for tokens in calls)
    assert abs(parts - Fraction(sum(calls) * input_nano, 10**6)) <= Fraction(len(calls), 2)


def picked(prices, model="qwen3:8b", backend="gpu1", at=T0):
    row = pick(prices, model, backend, at)
    return row and row.id


def test_no_price_is_none_not_zero():
    assert picked([]) is None
    assert picked([price("llama3.2:latest")]) is None


def test_the_exact_name_beats_the_longest_pattern():
    rows = [price("*", id=1), price("qwen3:*", id=2), price("qwen3:8b", id=3), price("qwen3:8b*", id=4)]
    assert picked(rows) == 3
    assert picked(rows[:2]) == 2
    assert picked(rows[:1]) == 1
    assert picked(rows, model="qwen3:8b-q4") == 4


def test_a_price_of_the_backend_beats_one_for_all():
    rows = [price("qwen3:8b", id=1), price("qwen3:8b", id=2, backend="gpu1"), price("qwen3:8b", id=3, backend="gpu2")]
    assert picked(rows) == 2
    assert picked(rows, backend="gpu9") == 1
    # A more exact name matters more than the backend.
    assert picked([price("*", id=1, backend="gpu1"), price("qwen3:8b", id=2)]) == 2


def test_the_newest_price_that_is_valid_counts():
    rows = [price("qwen3:8b", id=number, valid_from=T0 + timedelta(days=number)) for number in range(3)]
    assert picked(rows, at=T0 - timedelta(seconds=1)) is None
    assert picked(rows, at=T0) == 0
    assert picked(rows, at=T0 + timedelta(days=1)) == 1
    assert picked(rows, at=T0 + timedelta(days=99)) == 2


@given(st.permutations(range(6)))
def test_the_order_of_rows_does_not_matter(order):
    rows = [
        price("*", id=0),
        price("qwen3:*", id=1, backend="gpu1"),
        price("qwen3:*", id=2),
        price("qwen3:8b", id=3),
        price("qwen3:8b", id=4, valid_from=T0 + timedelta(days=1)),
        price("llama3.2:latest", id=5),
    ]
    assert picked([rows[position] for position in order]) == 3
