"""The pages of keys: who sees and does what, and a secret that is shown once."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from tenants.keys import digest
from tenants.models import ApiKey, Membership, Role, ShownOnce
from tenants.views.keys import ON_A_PAGE
from tests.factories import make_backend, make_key, make_tenant, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def has_models(db):
    """Two backends whose probes have reported."""
    from proxy.models import BackendReport

    for number, names in enumerate((("llama3.2:latest", "nomic-embed-text:latest"), ("qwen3:8b",))):
        BackendReport.objects.create(
            backend=make_backend(f"gpu{number}"),
            state="up",
            models=[{"name": name, "family": "llama"} for name in names],
            reporter="tests",
            updated_at=timezone.now(),
        )


def make_by_form(client, **fields):
    """The page that the form leads to."""
    answer = client.post(reverse("key_new"), {"name": "my key", **fields})
    assert answer.status_code == 302, answer.content.decode()
    return answer["location"]


def test_a_key_is_made_by_its_user_and_shown_exactly_once(client, bob, settings):
    client.force_login(bob)
    location = make_by_form(client)
    key = ApiKey.objects.get()
    assert (key.user, key.created_by, key.name) == (bob, bob, "my key")
    page = client.get(location)
    clear_text = page.context["clear_text"]
    assert digest(clear_text.encode(), settings.KEY_PEPPER) == bytes(key.digest)
    assert clear_text in page.content.decode()
    assert page["Cache-Control"] == "no-store"
    assert page["Referrer-Policy"] == "strict-origin"
    again = client.get(location, follow=True)
    assert clear_text not in again.content.decode()
    assert "not kept" in again.content.decode()


def test_the_secret_is_nowhere_in_clear_between_the_two_pages(client, bob):
    client.force_login(bob)
    location = make_by_form(client)
    kept = bytes(ShownOnce.objects.get().sealed)
    session = str(dict(client.session))
    cookie = client.cookies["shown_once"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"
    clear_text = client.get(location).context["clear_text"]
    for place in (location, session, cookie.value, kept.decode("latin-1")):
        assert clear_text not in place
        assert clear_text[13:] not in place
    assert not ShownOnce.objects.exists()


def test_the_secret_is_for_who_made_it_alone(client, bob, alice):
    client.force_login(bob)
    location = make_by_form(client)
    client.logout()
    client.force_login(alice)  # an owner, who sees the key, in the same browser
    answer = client.get(location, follow=True)
    assert "clear_text" not in (answer.context or {})


def test_a_secret_that_nobody_fetched_is_gone_after_minutes(client, bob):
    client.force_login(bob)
    location = make_by_form(client)
    ShownOnce.objects.update(created_at=timezone.now() - timedelta(minutes=6))
    assert client.get(location).status_code == 302


def test_what_the_form_says_holds(client, bob, has_models, settings):
    client.force_login(bob)
    day = timezone.localdate() + timedelta(days=3)
    make_by_form(
        client,
        expires_on=day.isoformat(),
        models=["llama3.2:latest"],
        patterns="qwen3:*, ,mistral",
        max_output_tokens="500",
        may_be_in_path="on",
    )
    key = ApiKey.objects.get()
    assert key.models_allowed == ["llama3.2:latest", "qwen3:*", "mistral"]
    assert (key.max_output_tokens, key.may_be_in_path) == (500, True)
    assert timezone.localtime(key.expires_at).replace(tzinfo=None).isoformat() == f"{day + timedelta(days=1)}T00:00:00"
    # What it says is what is asked for the next time.
    form = client.get(reverse("key_edit", args=[key.prefix])).context["form"]
    assert form["expires_on"].value() == day
    assert form["models"].value() == ["llama3.2:latest", "mistral"]
    assert form["patterns"].value() == "qwen3:*"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 101),
        ("expires_on", "2020-01-01"),
        ("expires_on", "yesterday"),
        ("max_output_tokens", "0"),
        ("max_output_tokens", "99999999999"),
        ("models", "not-installed:latest"),
    ],
)
def test_what_makes_no_sense_is_said_beside_the_field(client, bob, has_models, field, value):
    client.force_login(bob)
    answer = client.post(reverse("key_new"), {"name": "my key", field: value})
    assert answer.status_code == 200
    assert answer.context["form"].errors[field]
    assert not ApiKey.objects.exists()


def test_only_owners_make_service_keys(client, alice, bob):
    client.force_login(alice)
    make_by_form(client, whose="service")
    assert ApiKey.objects.get().user is None
    client.force_login(bob)
    make_by_form(client, whose="service")  # a field that the form of a member does not have
    assert ApiKey.objects.get(created_by=bob).user == bob


def test_t6_a_foreign_tenant_cannot_be_chosen(client, alice, other):
    second = make_tenant("second")
    second.memberships.create(user=alice, role=Role.MEMBER)
    client.force_login(alice)
    assert client.post(reverse("key_new"), {"name": "k", "tenant": other.pk, "whose": "mine"}).status_code == 200
    assert client.post(reverse("key_new"), {"name": "k", "tenant": second.pk, "whose": "service"}).status_code == 200
    assert not ApiKey.objects.exists()
    make_by_form(client, tenant=second.pk, whose="mine")
    assert ApiKey.objects.get().tenant == second


def test_an_edited_key_keeps_its_owner_and_rights(client, bob, charlie, other):
    key = make_key(bob.tenants.get(), user=bob, may_infer=False).row
    client.force_login(bob)
    forged = {"tenant": other.pk, "user": charlie.pk, "may_manage": "on", "may_use_cloud": "on", "revoked_at": ""}
    answer = client.post(reverse("key_edit", args=[key.prefix]), {"name": "renamed", **forged})
    assert answer.status_code == 302
    key.refresh_from_db()
    assert (key.name, key.tenant.name, key.user) == ("renamed", "acme", bob)
    assert (key.may_manage, key.may_use_cloud, key.may_infer) == (False, False, False)


def test_a10_a_rotated_key_has_a_new_secret_and_the_old_one_ends_when_chosen(client, bob, settings):
    made = make_key(bob.tenants.get(), user=bob)
    client.force_login(bob)
    answer = client.post(reverse("key_rotate", args=[made.row.prefix]), {"overlap": "1h"})
    clear_text = client.get(answer["location"]).context["clear_text"]
    key = ApiKey.objects.get()
    assert clear_text != made.clear_text
    assert bytes(key.digest) == digest(clear_text.encode(), settings.KEY_PEPPER)
    assert bytes(key.previous_digest) == digest(made.clear_text.encode(), settings.KEY_PEPPER)
    left = key.previous_expires_at - timezone.now()
    assert timedelta(minutes=58) < left <= timedelta(hours=1)


@pytest.mark.parametrize("name", ["key_rotate", "admin:tenants_apikey_rotate"])
def test_pressing_twice_rotates_once_so_that_the_old_secret_goes_on_working(client, bob, root, settings, name):
    made = make_key(bob.tenants.get(), user=bob)
    client.force_login(root if name.startswith("admin") else bob)
    url = reverse(name, args=[made.row.pk if name.startswith("admin") else made.row.prefix])
    page = client.get(url)
    form = {"overlap": page.context["form"]["overlap"].value(), "version": page.context["form"]["version"].value()}
    assert f'value="{form["version"]}"' in page.content.decode()
    secrets = [client.get(client.post(url, form)["location"], follow=True) for _ in range(2)]
    key = ApiKey.objects.get()
    assert bytes(key.previous_digest) == digest(made.clear_text.encode(), settings.KEY_PEPPER)
    assert "rotated just now" in secrets[1].content.decode()
    again = client.get(url).context["form"]["version"].value()
    assert client.post(url, form | {"version": again}).status_code == 302
    assert bytes(ApiKey.objects.get().previous_digest) == bytes(key.digest)


def test_a_key_is_switched_off_and_on_and_revoked_after_a_question(client, bob):
    key = make_key(bob.tenants.get(), user=bob).row
    client.force_login(bob)
    switch = reverse("key_switch", args=[key.prefix])
    assert f'href="{switch}"' in client.get(reverse("key", args=[key.prefix])).content.decode()
    assert "running answers are cut" in client.get(switch).content.decode()
    assert ApiKey.objects.get().enabled
    for to, enabled in (("off", False), ("off", False), ("on", True)):
        client.post(switch, {"to": to})
        assert ApiKey.objects.get().enabled is enabled
    ApiKey.objects.update(enabled=False)
    assert client.get(switch)["location"] == reverse("key", args=[key.prefix])
    question = client.get(reverse("key_revoke", args=[key.prefix]))
    assert "cannot be undone" in question.content.decode()
    assert ApiKey.objects.get().revoked_at is None
    client.post(reverse("key_revoke", args=[key.prefix]))
    assert ApiKey.objects.get().state == "revoked"


@pytest.mark.parametrize("name", ["key_edit", "key_rotate", "key_switch", "key_revoke"])
def test_a_revoked_key_stays_so(client, bob, name):
    key = make_key(bob.tenants.get(), user=bob).row
    key.revoke()
    client.force_login(bob)
    assert client.post(reverse(name, args=[key.prefix]), {"name": "x", "overlap": "0", "to": "on"}).status_code == 403
    assert ApiKey.objects.get().state == "revoked"
    assert client.get(reverse("key", args=[key.prefix])).status_code == 200


@pytest.mark.parametrize("right", ["may_manage", "may_use_cloud"])
def test_t3_who_has_a_key_with_rights_of_superusers_does_not_widen_them(client, bob, right):
    soon = timezone.now() + timedelta(days=1)
    key = make_key(bob.tenants.get(), user=bob, models_allowed=["team/*"], expires_at=soon, **{right: True}).row
    client.force_login(bob)
    wider = {
        "name": "renamed",
        "patterns": "*, 10.0.0.5/*",
        "models": "llama3.2",
        "expires_on": "",
        "may_be_in_path": "",
    }
    assert client.post(reverse("key_edit", args=[key.prefix]), wider).status_code == 302
    key.refresh_from_db()
    assert (key.name, key.models_allowed, key.expires_at) == ("renamed", ["team/*"], soon)
    bob.is_superuser = True
    bob.save()
    assert client.post(reverse("key_edit", args=[key.prefix]), wider).status_code == 302
    key.refresh_from_db()
    assert (key.models_allowed[-1], key.expires_at) == ("10.0.0.5/*", None)


@pytest.mark.parametrize("right", ["may_manage", "may_use_cloud"])
def test_t3_an_owner_does_not_take_over_rights_that_a_member_was_given(client, alice, bob, right):
    acme = bob.tenants.get()
    of_bob, of_tenant = make_key(acme, user=bob, **{right: True}).row, make_key(acme, **{right: True}).row

    def rotated_by(user, key):
        client.force_login(user)
        link = reverse("key_rotate", args=[key.prefix])
        shown = link in client.get(reverse("key", args=[key.prefix])).content.decode()
        status = client.post(link, {"overlap": "0"}).status_code
        assert shown == (status == 302)
        return shown

    assert not rotated_by(alice, of_bob)
    assert rotated_by(bob, of_bob)
    assert rotated_by(alice, of_tenant)
    client.force_login(alice)
    assert client.post(reverse("key_revoke", args=[of_bob.prefix])).status_code == 302


def test_a_key_that_came_from_elsewhere_is_not_rotated(client, bob):
    key = make_key(bob.tenants.get(), user=bob).row
    ApiKey.objects.update(imported=True)
    client.force_login(bob)
    assert client.post(reverse("key_rotate", args=[key.prefix]), {"overlap": "0"}).status_code == 403


def test_the_examples_name_a_model_that_the_key_may_use(client, bob, has_models):
    client.force_login(bob)
    for allowed, model in (([], "llama3.2:latest"), (["qwen3*"], "qwen3:8b"), (["nomic*"], "")):
        key = make_key(bob.tenants.get(), user=bob, models_allowed=allowed).row
        page = client.get(reverse("key", args=[key.prefix]))
        assert page.context["example_model"] == model
        assert "YOUR_KEY" in page.context["snippets"]["curl-ollama"].text


def test_a_key_page_tells_its_owner_why_it_was_refused(client, bob):
    from proxy.models import RefusalCount

    key = make_key(bob.tenants.get(), user=bob).row
    RefusalCount.objects.create(minute=timezone.now(), code="key_ip_denied", key_prefix=key.prefix, count=3)
    client.force_login(bob)
    page = client.get(reverse("key", args=[key.prefix])).content.decode()
    assert "shuts the address out" in page


def test_the_list_has_the_keys_of_a_member_and_all_of_an_owner(client, alice, bob, charlie):
    acme, other = bob.tenants.get(), charlie.tenants.get()
    make_key(acme, "bobs", user=bob)
    make_key(acme, "service")
    make_key(acme, "alices", user=alice)
    make_key(other, "foreign", user=charlie)
    make_key(acme, "old", user=bob).row.revoke()

    def names(user, **query):
        client.force_login(user)
        return {key.name for key in client.get(reverse("keys"), query).context["keys"]}

    assert names(bob) == {"bobs"}
    assert names(alice) == {"bobs", "service", "alices"}
    assert names(charlie) == {"foreign"}
    assert names(alice, revoked="") == {"old"}


def test_a_long_list_comes_in_pages_and_can_be_searched(
    client, alice, acme, bob, charlie, django_assert_max_num_queries
):
    made = [make_key(acme, f"key {number:03}", user=bob).row for number in range(ON_A_PAGE + 2)]
    foreign = make_key(charlie.tenants.get(), "key of charlie").row
    client.force_login(alice)
    with django_assert_max_num_queries(20):
        page = client.get(reverse("keys"))
    assert [key.pk for key in page.context["keys"]] == [key.pk for key in made[:1:-1]]
    older = client.get(f"{reverse('keys')}?{page.context['older']}")
    assert [key.pk for key in older.context["keys"]] == [made[1].pk, made[0].pk]
    assert not older.context["older"]
    for wanted, found in (
        ("KEY 007", [made[7]]), (f"ogw_{made[9].prefix}_…", [made[9]]), (made[9].prefix, [made[9]]), ("nobody", []),
        (foreign.prefix, []), ("charlie", []), ("\0%_", []),
    ):  # fmt: skip
        answer = client.get(reverse("keys"), {"q": wanted})
        assert list(answer.context["keys"]) == found, wanted
    assert len(client.get(reverse("keys"), {"q": "bob"}).context["keys"]) == ON_A_PAGE
    for before in ("x", "-1", "9" * 40, "٣"):
        assert client.get(reverse("keys"), {"before": before}).status_code == 200


def test_who_left_a_tenant_sees_none_of_its_keys(client, bob):
    key = make_key(bob.tenants.get(), user=bob).row
    bob.memberships.all().delete()
    client.force_login(bob)
    assert client.get(reverse("key", args=[key.prefix])).status_code == 404


def test_the_menu_leads_to_keys_where_somebody_may_have_them(client, acme, alice, bob):
    viewer, loner = make_user(tenant=acme, role=Role.VIEWER), make_user()
    for person, shown in ((alice, True), (bob, True), (viewer, False), (loner, False)):
        client.force_login(person)
        for page in ("home", "usage", "requests"):
            text = client.get(reverse(page)).content.decode()
            assert ('href="/keys/"' in text) is shown, (page, person)


def test_the_list_says_whose_keys_it_has(client, acme, other, alice, bob, root):
    def said(person):
        client.force_login(person)
        return client.get(reverse("keys")).content.decode()

    assert "All keys of the tenant that you own" in said(alice)
    assert "What your programs call the gateway with" in said(bob)
    for tenant in (acme, other):
        Membership.objects.create(user=root, tenant=tenant, role=Role.OWNER)
    assert "All keys of the tenants that you own" in said(root)
    assert reverse("admin:tenants_apikey_changelist") in said(root)


def test_a_viewer_has_no_keys(client, acme):
    viewer = make_user("viewer", tenant=acme, role=Role.VIEWER)
    key = make_key(acme, user=viewer).row
    client.force_login(viewer)
    assert client.get(reverse("keys")).status_code == 403
    assert client.get(reverse("key_new")).status_code == 403
    assert client.post(reverse("key_new"), {"name": "k"}).status_code == 403
    assert client.get(reverse("key", args=[key.prefix])).status_code == 404


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "\u202eevil"]
)
def test_t8_names_are_shown_as_text(client, bob, text):
    key = make_key(bob.tenants.get(), text, user=bob, models_allowed=[text]).row
    client.force_login(bob)
    for path in (reverse("home"), reverse("keys"), *(reverse(name, args=[key.prefix]) for name in (
        "key", "key_edit", "key_rotate", "key_revoke",
    ))):  # fmt: skip
        page = client.get(path).content.decode()
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert escape(text) in page
