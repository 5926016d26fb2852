"""Which limits hold for whom: overrides that end by themselves, and owners' limits, which can only tighten."""

import pytest

from proxy.limits.subjects import LimitTable
from tests.proxy.rules import NOW, key_row, limit, snapshot


def table(*rows, now=NOW):
    return LimitTable(rows, now)


def amounts(rules):
    return [rule.amount for rule in rules]


def test_an_override_holds_until_its_end_and_then_the_old_amount_by_itself():
    rule = limit(amount=10, override_amount=50, override_until=NOW + 60)
    row = ("tenant", 1, None, None, rule)
    before = snapshot(key_row(), limits=(row,))
    assert amounts(before.key(1, NOW).rules) == [50]
    assert before.valid_until == NOW + 60
    after = before.refreshed(NOW + 60)
    assert amounts(after.key(1, NOW + 60).rules) == [10]
    assert after.valid_until is None
    assert after.tables is before.tables  # no reading of the tables, no revision


def test_a_refusal_says_that_an_amount_is_raised_and_until_when():
    rule = limit(amount=10, override_amount=50, override_until=NOW + 60).in_force(NOW)
    assert rule.describe() == "50 requests per day for somebody (raised from 10 until 2027-01-15 08:01 UTC)"
    assert "raised" not in limit(override_amount=50, override_until=NOW - 1).in_force(NOW).describe()


def test_the_counter_of_a_raised_limit_is_the_same():
    rule = limit(override_amount=50, override_until=NOW + 60)
    keys = {each.window_at(NOW, "", "UTC").key for each in (rule, rule.in_force(NOW))}
    assert len(keys) == 1


@pytest.mark.parametrize(("by_owner", "found"), [(False, [7]), (True, [7, 10])])
def test_a_limit_of_an_owner_replaces_no_default(by_owner, found):
    """An administrator's limit of a key stands in the place of the default; an owner's would loosen it."""
    rows = (
        ("key", None, None, 1, limit(1, amount=7, by_owner=by_owner)),
        ("default", None, None, None, limit(2, amount=10)),
    )
    assert amounts(table(*rows).of_key(1, "aaaaaaaa", 1, None)) == found


def test_what_an_owner_allows_a_person_is_about_their_own_tenant():
    rows = (("user", 1, 5, None, limit(1, amount=3, by_owner=True)), ("user", None, 5, None, limit(2, amount=9)))
    made = table(*rows)
    assert amounts(made.of_key(1, "aaaaaaaa", 1, 5)) == [9, 3]
    assert amounts(made.of_key(2, "bbbbbbbb", 2, 5)) == [9]
    assert made.of_key(1, "aaaaaaaa", 1, 5)[1].counted_for == "user 5"


def test_the_class_and_the_weight_of_a_key_are_carried():
    shares = {1: ("interactive", 200), 2: ("batch", 50)}
    rows = [
        key_row(1), key_row(2, latency_class="batch", weight=30), key_row(3, tenant_id=2, latency_class="interactive"),
    ]  # fmt: skip
    found = snapshot(*rows, shares=shares)
    carried = [
        (key.latency_class, key.weight, key.tenant_weight) for key in (found.key(number, NOW) for number in (1, 2, 3))
    ]
    assert carried == [("interactive", 100, 200), ("batch", 30, 200), ("batch", 100, 50)]
