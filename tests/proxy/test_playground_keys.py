"""Which keys the playground's WebSocket calls with: those that its page offers."""

import pytest

from proxy.live.chat import _key_of
from tenants.models import Membership, Role
from tests.factories import make_key, make_tenant

pytestmark = pytest.mark.django_db


def test_t1_the_playground_takes_keys_of_ones_own_where_one_may_have_some(acme, bob, alice, charlie):
    key = make_key(acme, user=bob).row
    assert _key_of(bob.pk, key.prefix) == key.pk
    for other in (alice, charlie):
        assert _key_of(other.pk, key.prefix) is None
    assert _key_of(bob.pk, f"{key.prefix}\0") == key.pk
    left = make_key(make_tenant(), user=bob).row
    assert _key_of(bob.pk, left.prefix) is None
    Membership.objects.filter(user=bob).update(role=Role.VIEWER)
    assert _key_of(bob.pk, key.prefix) is None
