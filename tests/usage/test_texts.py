"""Stored prompts and answers: who reads them, that it is noted, search, and how they are forgotten."""

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from tenants.models import AuditEntry, Role, Tenant
from tests.factories import make_admin, make_key, make_user
from tests.factories import make_usage as make_usage_at
from usage import texts
from usage.models import StoredText, UsageRecord

pytestmark = pytest.mark.django_db


def make_usage(key, at=None):
    return make_usage_at(key, at=at or timezone.now())


def make_text(record, prompt="the canary sings", answer="tweet", **fields):
    return StoredText.objects.create(
        record_id=record.pk, tenant_id=record.tenant_id, user_id=record.user_id, api_key_id=record.api_key_id,
        prompt=prompt, answer=answer, **{"at": record.started_at, "model": record.model, **fields},
    )  # fmt: skip


def signed_in(user):
    client = Client()
    client.force_login(user)
    return client


def opened(user, record):
    return signed_in(user).post(reverse("request_text", args=[record.pk]))


def searched(user, wanted="", **fields):
    return signed_in(user).post(reverse("texts"), {"q": wanted, **fields})


def with_permission(user):
    user.user_permissions.add(Permission.objects.get(codename="read_storedtext"))
    return type(user).objects.get(pk=user.pk)


@pytest.fixture
def of_bob(acme, bob):
    """A call of Bob's, a member of Alice's tenant, and its text."""
    record = make_usage(make_key(acme, "bob's", user=bob).row)
    make_text(record)
    return record


@pytest.fixture
def reads():
    last = AuditEntry.objects.first()
    action = AuditEntry.Action.ACCESS
    return lambda: list(AuditEntry.objects.filter(pk__gt=last.pk if last else 0, action=action).order_by("pk"))


def test_t1_a_text_is_read_by_its_author_and_by_nobody_else(of_bob, alice, bob, charlie, reads):
    assert "the canary sings" in opened(bob, of_bob).content.decode()
    assert len(reads()) == 1
    staff = make_user("staff", is_staff=True)
    staff.user_permissions.add(*Permission.objects.filter(codename__in=["view_usagerecord", "view_dailyusage"]))
    for who in (alice, charlie, staff, make_user("loner")):  # the owner of the tenant is not the author
        assert opened(who, of_bob).status_code == 404
        assert "canary" not in searched(who, "canary").content.decode().replace("contains “canary”", "").replace(
            'value="canary"', ""
        )
    assert len(reads()) == 1


def test_t3_the_permission_alone_does_not_reach_what_somebody_may_not_see(of_bob, alice, charlie):
    assert opened(with_permission(alice), of_bob).status_code == 200
    assert opened(with_permission(charlie), of_bob).status_code == 404


def test_the_text_of_a_key_that_is_nobodys_needs_the_permission(acme, alice):
    record = make_usage(make_key(acme, "service").row)
    make_text(record)
    assert opened(alice, record).status_code == 404
    assert opened(with_permission(alice), record).status_code == 200


def test_each_look_leaves_an_entry_that_tells_who_and_not_what(of_bob, alice, reads):
    client = signed_in(with_permission(alice))
    client.post(reverse("request_text", args=[of_bob.pk]))
    client.post(reverse("texts"), {"q": "canary"})
    found = reads()
    assert [(entry.actor, entry.object_pk, entry.tenant_id) for entry in found] == 2 * [
        (alice, str(of_bob.pk), of_bob.tenant_id)
    ]
    assert "canary" not in json.dumps([[entry.object_repr, entry.changes, entry.additional_data] for entry in found])
    told = client.get(reverse("changes")).content.decode()
    assert f"text of the request {of_bob.pk}" in told
    assert ">read<" in told


def test_t7_no_page_that_is_only_got_shows_a_text_or_notes_a_look(of_bob, bob, reads):
    client = signed_in(bob)
    assert client.get(reverse("request_text", args=[of_bob.pk])).status_code == 405
    pages = [client.get(reverse("texts"), {"q": "canary"}), client.get(reverse("request", args=[of_bob.pk]))]
    for page in pages:
        assert page.status_code == 200
        assert "the canary sings" not in page.content.decode()
    assert "Show the text" in pages[1].content.decode()
    assert reads() == []


def test_texts_are_in_no_list_no_export_and_no_admin(of_bob, alice):
    for user in (alice, make_admin("root")):
        client = signed_in(user)
        for address in ("requests", "requests_csv", "requests_json", "home", "usage"):
            answer = client.get(reverse(address))
            body = b"".join(answer.streaming_content) if answer.streaming else answer.content
            assert b"canary" not in body
    root = signed_in(make_admin("other-root"))
    answer = root.get(f"/admin/usage/usagerecord/{of_bob.pk}/change/")
    assert answer.status_code == 200
    assert b"canary" not in answer.content
    assert not any(field.name in ("prompt", "answer") for field in UsageRecord._meta.concrete_fields)


@pytest.mark.parametrize(
    ("wanted", "count"), [("", 3), ("CANARY", 2), ("tweet", 1), ("sings\x00", 1), ("%", 1), ("nothing", 0)]
)
def test_search_looks_into_both(acme, bob, wanted, count):
    key = make_key(acme, "bob's", user=bob).row
    for prompt, answer in (("a canary sings", "yes"), ("100 %", "a canary"), ("birds", "they tweet")):
        make_text(make_usage(key), prompt, answer)
    page = searched(bob, wanted)
    assert page.status_code == 200
    assert len(page.context["found"]) == count


def test_search_goes_on_behind_its_first_page(acme, bob, monkeypatch):
    monkeypatch.setattr(texts, "PAGE", 2)
    key, now = make_key(acme, "bob's", user=bob).row, timezone.now()
    for age in range(5):
        make_text(make_usage(key, at=now - timedelta(minutes=age)), f"text {age}")
    seen, before = [], ""
    for _ in range(5):
        page = searched(bob, "text", before=before)
        seen += [text.prompt for text in page.context["found"]]
        before = page.context["older"]
        if not before:
            break
    assert seen == [f"text {age}" for age in range(5)]
    assert searched(bob, "text", before="<nonsense>").status_code == 200


def test_a_text_is_gone_after_seven_days_even_if_nobody_pruned(acme, bob):
    now = timezone.now()
    old, young = (
        make_usage(make_key(acme, name, user=bob).row, at=now - age)
        for name, age in (("old", timedelta(days=7, seconds=1)), ("young", timedelta(days=7) - timedelta(minutes=5)))
    )
    for record in (old, young):
        make_text(record)
    assert (opened(bob, old).status_code, opened(bob, young).status_code) == (404, 200)
    assert texts.forget() == 1
    assert [text.pk for text in StoredText.objects.all()] == [young.pk]


def test_u12_prune_usage_deletes_old_texts_in_batches(acme, monkeypatch):
    monkeypatch.setattr(texts, "BATCH", 3)
    key = make_key(acme).row
    for days in range(14):
        make_text(make_usage(key, at=timezone.now() - timedelta(days=days, minutes=1)))
    out = StringIO()
    call_command("prune_usage", "--days", "90", "--json", stdout=out)
    told = json.loads(out.getvalue())
    assert (told["deleted"], told["texts"], told["changed"]) == (0, 7, True)
    assert (StoredText.objects.count(), UsageRecord.objects.count()) == (7, 14)


def test_what_is_stored_is_redacted_and_cut_and_stored_once(acme):
    record = make_usage(make_key(acme).row)
    text = (record.pk.hex, record.started_at.timestamp(), acme.pk, None, record.api_key_id, "m", "x" * 3000,
            "mail me@example.org")  # fmt: skip
    texts.store([text, text])
    texts.store([text])
    row = StoredText.objects.get()
    assert (row.pk, row.prompt, row.answer) == (record.pk, "", "mail [redacted]")
    texts.store([(*text[:6], "y " * 3000, "")])
    assert StoredText.objects.count() == 1


def test_a_banner_says_so_on_all_pages_of_the_tenants_people_while_it_is_on(acme, alice, bob, charlie):
    def banner(user):
        return 'id="texts-are-kept"' in signed_in(user).get(reverse("home")).content.decode()

    assert not banner(bob)
    Tenant.objects.filter(pk=acme.pk).update(keeps_texts=True)
    viewer = make_user("viewer", tenant=acme, role=Role.VIEWER)
    assert [banner(user) for user in (alice, bob, viewer, charlie)] == [True, True, True, False]
    assert "acme" in signed_in(bob).get(reverse("requests")).content.decode()


def test_the_switch_is_off_and_putting_it_is_audited(acme):
    assert acme.keeps_texts is False
    acme.keeps_texts = True
    acme.save()
    assert AuditEntry.objects.first().changes == {"keeps_texts": [False, True]}
