from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants import money


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("0.15", 150_000_000),
        ("0.000000001", 1),
        ("3e-6", 3_000),
        ("1e3", 1_000_000_000_000),
        (" 7.50 ", 7_500_000_000),
        ("0.1000000000000000", 100_000_000),
        ("9223372036.854775807", 2**63 - 1),
    ],
)
def test_amounts_become_whole_nano_units(text, nano):
    assert money.to_nano(text) == nano


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1,5",
        "-1",
        "-0.1",
        "NaN",
        "Infinity",
        "0.0000000001",
        "9223372036.854775808",
        "1e99999999",
        "1e-99999999",
    ],
)
def test_what_cannot_be_kept_exactly_is_refused(text):
    with pytest.raises(ValueError, match=r"\w"):
        money.to_nano(text)


@given(st.integers(0, 2**63 - 1))
def test_what_is_shown_reads_back_the_same(nano):
    assert money.to_nano(money.shown(nano)) == nano
    assert Decimal(money.shown(nano)) * money.ONE == nano
    assert money.shown(-nano) == (f"-{money.shown(nano)}" if nano else "0")
