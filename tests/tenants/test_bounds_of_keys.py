"""Which models a key is for and when it expires: what somebody above set, those below tighten and never lift."""

from datetime import datetime, timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from proxy.model_names import are_within
from tenants.models import ApiKey, Authority
from tests.factories import make_key

pytestmark = pytest.mark.django_db

END = timezone.make_aware(datetime(2099, 6, 15, 10, 30))  # not the end of a day, which a form could say


@pytest.fixture
def key(acme, bob):
    return make_key(acme, "bobs", user=bob, models_allowed=["llama3.2", "qwen3:*"], expires_at=END).row


def post(client, user, key, **fields):
    client.force_login(user)
    same = {"name": "renamed", "expires_on": "2099-06-15", "models": ["llama3.2"], "patterns": "qwen3:*"}
    answer = client.post(reverse("key_edit", args=[key.prefix]), same | fields)
    key.refresh_from_db()
    return answer


LOOSER = {
    "all models": {"models": [], "patterns": ""},
    "one more": {"patterns": "qwen3:*, mistral"},
    "a wider pattern": {"patterns": "qwen*"},
    "another for one": {"models": [], "patterns": "mistral, qwen3:*"},
    "never": {"expires_on": ""},
    "a day later": {"expires_on": "2099-06-16"},
    "the end of the day that a form shows": {"expires_on": "2099-6-15 "},
}


@pytest.mark.parametrize(("by", "who"), [("administrator", "bob"), ("administrator", "alice"), ("owner", "bob")])
@pytest.mark.parametrize("fields", LOOSER.values(), ids=LOOSER)
def test_t6_on_the_page_nobody_lifts_what_somebody_above_set(client, key, request, by, who, fields):
    ApiKey.objects.update(models_allowed_by=by, expires_at_by=by)
    answer = post(client, request.getfixturevalue(who), key, **fields)
    assert (key.models_allowed, key.expires_at) == (["llama3.2", "qwen3:*"], END)
    if answer.status_code == 200:
        assert "ask them for" in answer.content.decode()
        assert key.name == "bobs"


@pytest.mark.parametrize(("by", "who"), [("owner", "alice"), ("person", "bob"), ("person", "alice")])
def test_on_the_page_one_lifts_what_oneself_or_somebody_below_set(client, key, request, by, who):
    ApiKey.objects.update(models_allowed_by=by, expires_at_by=by)
    assert post(client, request.getfixturevalue(who), key, models=[], patterns="", expires_on="").status_code == 302
    assert (key.models_allowed, key.expires_at) == ([], None)


def test_on_the_page_one_tightens_what_somebody_above_set_which_stays_theirs(client, key, bob):
    assert post(client, bob, key, models=[], patterns="qwen3:8b", expires_on="2099-06-01").status_code == 302
    assert key.models_allowed == ["qwen3:8b"]
    assert timezone.localdate(key.expires_at - timedelta(seconds=1)).isoformat() == "2099-06-01"
    assert (key.models_allowed_by, key.expires_at_by) == (Authority.ADMINISTRATOR, Authority.ADMINISTRATOR)
    assert post(client, bob, key, models=[], patterns="qwen3:*", expires_on="2099-06-01").status_code == 200


def test_what_a_form_shows_and_nobody_touched_stays_as_it_is(client, key, bob):
    """A day stands for a moment in it, and a pattern may hold the comma that separates them."""
    ApiKey.objects.update(models_allowed=["qwen3:[1,2]*"])
    assert post(client, bob, key, models=[], patterns="qwen3:[1,2]*").status_code == 302
    assert (key.name, key.models_allowed, key.expires_at) == ("renamed", ["qwen3:[1,2]*"], END)


def test_the_page_says_who_set_what(client, key, bob):
    client.force_login(bob)
    shown = client.get(reverse("key", args=[key.prefix])).content.decode()
    assert shown.count("set by an administrator") == 2
    form = client.get(reverse("key_edit", args=[key.prefix])).content.decode()
    assert "An administrator set this day" in form
    assert "An administrator set which models" in form
    ApiKey.objects.update(models_allowed_by="person", expires_at_by="person")
    assert "set by" not in client.get(reverse("key", args=[key.prefix])).content.decode()


def test_a_key_is_bounded_by_who_makes_it_and_who_changes_it(client, acme, bob, alice, root):
    client.force_login(alice)
    new = {"name": "k", "whose": "person", "person": bob.pk, "patterns": "qwen3:*", "expires_on": "2099-06-15"}
    client.post(reverse("key_new"), new)
    his = ApiKey.objects.get()
    assert (his.models_allowed_by, his.expires_at_by) == ("owner", "owner")
    client.force_login(bob)
    client.post(reverse("key_new"), {"name": "mine", "patterns": "qwen3:*"})
    mine = ApiKey.objects.get(name="mine")
    assert (mine.models_allowed_by, mine.expires_at_by) == ("person", "person")
    client.force_login(root)
    fields = {"name": "mine", "models_allowed": '["qwen3:8b"]', "enabled": "on"}
    client.post(reverse("admin:tenants_apikey_change", args=[mine.pk]), fields)
    mine.refresh_from_db()
    assert (mine.models_allowed_by, mine.expires_at_by) == ("administrator", "person")


@pytest.mark.parametrize(("names", "bounds", "within"), [
    (["llama3.2"], ["llama3.2:latest"], True),
    (["library/qwen3"], ["qwen3"], True),
    (["library/qwen3"], ["*/*"], False),  # it is called qwen3:latest, without a stroke
    (["qwen3:8b", "qwen3:*b"], ["QWEN3:*"], True),
    (["qwen3:*"], ["qwen3:*b"], False),
    (["qwen3:?b"], ["qwen3:*b"], True),
    (["qwen3:*"], ["qwen3:?"], False),
    (["[ab]"], ["*a*"], False),
    (["*"], ["[*]"], False),
    ([], ["*"], False),
    (["a", "b"], ["a"], False),
])  # fmt: skip
def test_what_an_allow_list_allows_is_within_another(names, bounds, within):
    assert are_within(names, bounds) is within
