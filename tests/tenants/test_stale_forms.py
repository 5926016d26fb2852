"""A form of the admin saves what was changed in it: what somebody else decided while it was on its way stays."""

from datetime import timedelta

import pytest
from django.contrib import admin
from django.test import RequestFactory
from django.urls import reverse
from django.utils import timezone

from tenants.keys import rotate_key
from tenants.models import ApiKey, Tenant, User
from tests.factories import make_key

pytestmark = pytest.mark.django_db


def saved(root, row, form_fields, meanwhile):
    """What a form makes of a row that changes between the look at it and the saving."""
    request = RequestFactory().post("/", form_fields)
    request.user = root
    page = admin.site._registry[type(row)]
    form = page.get_form(request, row, change=True)(request.POST, instance=type(row).objects.get(pk=row.pk))
    assert form.is_valid(), form.errors
    meanwhile()
    page.save_model(request, form.save(commit=False), form, change=True)
    row.refresh_from_db()
    return row


KEY = {"name": "renamed", "models_allowed": "[]", "initial-models_allowed": "[]", "enabled": "on"}
KEY |= {"may_infer": "on", "may_list": "on"}


def test_a_key_that_is_revoked_meanwhile_stays_revoked(root, acme):
    key = make_key(acme).row
    row = saved(root, key, KEY, lambda: ApiKey.objects.filter(pk=key.pk).revoke())
    assert (row.state, row.name) == ("revoked", "renamed")


def test_a_key_that_is_rotated_meanwhile_keeps_its_new_secret(root, acme):
    key, made = make_key(acme).row, []

    def rotate():
        made.append(rotate_key(key, timedelta(hours=1)))

    row = saved(root, key, KEY, rotate)
    assert bytes(row.digest) == bytes(ApiKey.objects.get().digest) == bytes(made[0].row.digest)
    assert row.previous_digest


def test_a_key_that_its_person_bounds_meanwhile_stays_bounded(root, acme, bob):
    key = make_key(acme, user=bob).row
    row = saved(root, key, KEY, lambda: ApiKey.objects.update(models_allowed=["qwen3:*"], max_output_tokens=5))
    assert (row.models_allowed, row.max_output_tokens, row.name) == (["qwen3:*"], 5, "renamed")


def test_a_tenant_that_is_deleted_or_switched_off_meanwhile_stays_so(root, acme):
    fields = {"name": "renamed", "enabled": "on", "latency_class": "interactive", "weight": "100"}
    fields |= {"cache_scope": "tenant"}
    row = saved(root, acme, fields, lambda: Tenant.objects.update(archived_at=timezone.now(), enabled=False))
    assert (row.name, row.enabled, row.archived_at is None) == ("renamed", False, False)


def test_somebody_who_changes_their_password_meanwhile_keeps_it(root, bob):
    fields = {"username": "bob", "email": "bob@example.com", "is_active": "on"}
    fields |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00"}
    row = saved(root, bob, fields, lambda: User.objects.filter(pk=bob.pk).update(password="another"))
    assert (row.email, row.password) == ("bob@example.com", "another")


def test_what_is_changed_in_the_form_is_saved_with_who_decided_it(client, root, acme, bob):
    key = make_key(acme, user=bob, models_allowed_by="person").row
    client.force_login(root)
    url = reverse("admin:tenants_apikey_change", args=[key.pk])
    changed = {**KEY, "models_allowed": '["qwen3:*"]', "enabled": "", "confirmed": "on"}
    assert client.post(url, changed).status_code == 302
    key.refresh_from_db()
    assert (key.models_allowed, key.models_allowed_by) == (["qwen3:*"], "administrator")
    assert (key.enabled, key.switched_off_by, key.name) == (False, "administrator", "renamed")
