import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.credentials import CannotUnseal, seal, unseal


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=200))
def test_what_is_sealed_unseals(text):
    sealed = seal(text)
    assert unseal(sealed) == unseal(memoryview(sealed)) == text
    assert len(text) < 8 or text.encode() not in sealed


def test_equal_credentials_look_different():
    assert seal("Bearer x") != seal("Bearer x")


def test_a_rotated_secret_key_still_unseals(settings):
    sealed = seal("Bearer x")
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another"
    assert unseal(sealed) == "Bearer x"
    fresh = seal("Bearer x")
    settings.SECRET_KEY_FALLBACKS = []
    assert unseal(fresh) == "Bearer x"
    with pytest.raises(CannotUnseal, match="SECRET_KEY_FALLBACKS"):
        unseal(sealed)


@pytest.mark.parametrize("junk", [b"", b"x", b"gAAAA" * 20])
def test_junk_is_refused(junk):
    with pytest.raises(CannotUnseal):
        unseal(junk)


def test_each_changed_byte_is_noticed():
    sealed = seal("Bearer x")
    for position in range(0, len(sealed), 7):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(CannotUnseal):
            unseal(bytes(changed))
