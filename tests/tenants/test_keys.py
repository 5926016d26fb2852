import re

import pytest
from django.conf import settings
from django.core.exceptions import ValidationError
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tenants.keys import ALPHABET, PATTERN, checksum, digest, has_our_form, make_clear_text, rotate_key
from tenants.models import ApiKey
from tests.factories import make_key, make_tenant


def test_a2_every_issued_key_matches_the_documented_pattern():
    for _ in range(500):
        prefix, clear_text = make_clear_text()
        assert re.fullmatch(PATTERN, clear_text)
        assert clear_text.split("_")[1] == prefix
        assert has_our_form(clear_text.encode())


def test_a2_each_change_of_one_character_fails_the_checksum():
    _, clear_text = make_clear_text()
    for position, old in enumerate(clear_text):
        for new in ALPHABET + "_-":
            if new != old:
                changed = clear_text[:position] + new + clear_text[position + 1 :]
                assert not has_our_form(changed.encode()), (position, old, new)


@given(st.binary(max_size=80))
def test_a2_junk_never_has_our_form_by_accident_of_parsing(junk):
    assert not has_our_form(junk)


@given(st.text(ALPHABET, min_size=8, max_size=8), st.text(ALPHABET, min_size=43, max_size=43))
def test_a2_whatever_is_assembled_as_documented_has_our_form(prefix, secret):
    body = f"ogw_{prefix}_{secret}".encode()
    assert has_our_form(body + checksum(body))
    assert not has_our_form(body + checksum(body) + b"0")
    assert not has_our_form(body + checksum(body)[:-1])


def test_a2_a_swap_of_neighbours_fails_the_checksum():
    _, clear_text = make_clear_text()
    for position in range(len(clear_text) - 1):
        left, right = clear_text[position : position + 2]
        if left != right:
            swapped = clear_text[:position] + right + left + clear_text[position + 2 :]
            assert not has_our_form(swapped.encode())


@given(st.binary(min_size=1), st.binary(min_size=1))
def test_a4_digests_of_different_keys_never_meet(one, two):
    assert (digest(one, b"pepper") == digest(two, b"pepper")) == (one == two)
    assert digest(one, b"pepper") != digest(one, b"another pepper")


def test_a1_the_row_keeps_a_digest_and_no_clear_text(db):
    new = make_key()
    row = ApiKey.objects.values().get(pk=new.row.pk)
    assert bytes(row["digest"]) == digest(new.clear_text.encode(), settings.KEY_PEPPER)
    secret = new.clear_text.split("_")[2]
    assert not any(secret in str(value) for value in row.values())
    assert secret not in repr(new)
    assert secret not in str(new.row)


def test_a10_a_rotated_key_keeps_its_prefix_and_overlaps(db):
    from datetime import timedelta

    old = make_key()
    new = rotate_key(old.row, timedelta(hours=1))
    assert has_our_form(new.clear_text.encode())
    assert new.clear_text != old.clear_text
    assert new.row.prefix == old.row.prefix
    assert bytes(new.row.previous_digest) == digest(old.clear_text.encode(), settings.KEY_PEPPER)
    assert new.row.previous_expires_at is not None


@pytest.mark.parametrize("models", ["llama3.2", {"a": 1}, ["a", 1], [""], [None]])
def test_allowed_models_are_a_list_of_names(db, models):
    with pytest.raises(ValidationError, match="Write a list"):
        make_key(models_allowed=models)


def test_an_output_cap_of_nothing_is_refused(db):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        make_key(max_output_tokens=0)


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=100))
def test_any_name_is_kept_as_it_is(db, name):
    row = make_key(make_tenant(), name).row
    row.refresh_from_db()
    assert row.name == name
