"""Everybody looks at every URL there is, of their own tenant, of another, and of none (threats T1, T2, T3, T7)."""

import re

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission
from django.db import models
from django.db.models import Q
from django.urls import path

from gateway_site.urls import urlpatterns as real
from tenants.models import ApiKey, Tenant, User
from tests.walk.conftest import OURS, THEIRS, dump, rolled_back, signed_in, staff, visit
from tests.walk.pages import UnknownParameter, admin_tables, pages, text_of

pytestmark = pytest.mark.django_db

EVERYBODY = ("stranger", "loner", "viewer", "member", "owner", "clerk", "deputy", "root")
OTHERS = ("stranger", "loner", "viewer", "member", "owner", "clerk")

# Who has the link is invited, whoever they are.
BY_LINK = {"invitation"}
# What a stranger gets that is not the way to the sign-in page.
OPEN = {
    "livez", "readyz", "metrics",  # machines; the last two for METRICS_NETWORKS
    "test",  # whether it works, and nothing else
    "account/login/", "account/logout/", "account/signup/", "account/inactive/", "account/password/reset/",
    "account/password/reset/done/", "account/password/reset/key/done/",
    "account/password/reset/key/%(uidb36)s-%(key)s/",
    "account/confirm-email/", "account/confirm-email/%(key)s/", "account/2fa/webauthn/login/",
    "account/3rdparty/login/cancelled/", "account/3rdparty/login/error/", "account/3rdparty/signup/",
    "account/social/login/cancelled/", "account/social/login/error/", "account/social/signup/",
    "account/social/connections/",  # a redirect to account/3rdparty/
    "account/oidc/%(provider_id)s/login/", "account/oidc/%(provider_id)s/login/callback/",
    "account/login/code/confirm/",
    "admin/logout/", "invitation/%(token)s/", "setup/%(token)s/",
    "manage/api/openapi.json", "manage/api/",  # what there is to ask with a token; nothing
}  # fmt: skip
# What /readyz says: no gateway runs here.
NOT_SERVING = {503}
TO_SIGN_IN = re.compile(r"/(account|admin)/login/(\?next=|$)")


def urlpatterns_with_a_new_page():
    return [path("thing/<int:thing_number>/", lambda request, thing_number: None, name="thing"), *real]


def test_the_walk_knows_what_goes_into_every_url(world):
    templates = [page.template for page in pages() if page.paths(world.theirs) and page.missing(world.theirs)]
    assert len(templates) > 200
    assert {"keys/%(prefix)s/", "admin/tenants/limit/%(object_id)s/change/", "account/2fa/"} <= set(templates)


def test_a_new_url_that_it_does_not_know_is_told(world, settings):
    class new:
        urlpatterns = urlpatterns_with_a_new_page()

    settings.ROOT_URLCONF = new
    (page,) = [page for page in pages() if page.name == "thing"]
    with pytest.raises(UnknownParameter, match=r"FILLS of tests/walk/pages.py"):
        page.paths(world.theirs)


@pytest.mark.parametrize("who", OTHERS)
def test_t1_nobody_learns_a_datum_of_another_tenant(world, visits, who):
    """Neither in a page, a header, a cookie, nor in where one is sent."""
    secret = [THEIRS, *(key.prefix for key in world.theirs[ApiKey])]
    for each in visits(who):
        told = each.text.replace(each.path, "")  # what was asked may be said again
        found = [datum for datum in secret if datum in told and each.page.name not in BY_LINK]
        assert not found, f"{each.path} tells {who} {found}"
    if who == "clerk":
        assert not any(OURS in each.text for each in visits(who) if each.page.name not in BY_LINK)
    if who in ("viewer", "owner"):  # as a test of the test: they learn what is theirs
        assert sum(OURS in each.text for each in visits(who)) >= 4


@pytest.mark.parametrize("who", OTHERS)
def test_t1_foreign_and_missing_ids_answer_alike(world, visits, who):
    def kind(each):
        text = re.sub(
            r"x-request-id: \S+|\"request_id\": \"[0-9a-f-]+\"|<code>[0-9a-f-]{36}</code>|"
            r"name=\"csrfmiddlewaretoken\" value=\"\w+\"",
            "",
            each.text,
        )
        text = re.sub(r"csrftoken=\w+|expires=[^;]*|^(Expires|Last-Modified|Content-Length): .*$", "", text, flags=re.M)
        for part in (each.path, each.path.replace("/", "%2F")):
            text = text.replace(part, "THE-PATH")
        return each.status, text

    compared = 0
    for page in pages():
        if not page.parameters or page.name in BY_LINK:
            continue
        mine = [each for each in visits(who) if each.page == page]
        if not mine:
            continue
        (missing,) = [kind(each) for each in mine if each.of == "nobody"]
        for each in mine:
            if each.of == "theirs":
                assert kind(each)[0] == missing[0], f"{who} at {each.path}"
                assert kind(each) == missing, f"{who} at {each.path}"
                assert each.status != 200 or page.template.startswith("account/"), f"{who} at {each.path}"
                compared += 1
    assert compared > 20


@pytest.mark.parametrize("who", EVERYBODY)
def test_no_url_fails(visits, who):
    assert {each.status for each in visits(who)} <= {200, 301, 302, 400, 401, 403, 404, 405} | NOT_SERVING


def test_what_is_open_to_strangers_is_listed(visits):
    """A new page is not open by mistake."""
    for each in visits("stranger"):
        location = re.search(r"^Location: (.*)$", each.text, re.M)
        is_closed = each.status == 401 or (each.status == 302 and TO_SIGN_IN.match(location[1]))
        assert is_closed or each.page.template in OPEN or each.status == 405, f"{each.path} answers {each.status}"


@pytest.mark.parametrize("who", EVERYBODY)
def test_t7_looking_changes_nothing(world, visits, who):
    before = dump()
    with rolled_back():
        found = visits(who)
    assert [(each.path, each.writes) for each in found if each.writes] == []
    assert dump() == before


@pytest.mark.parametrize("who", ["stranger", "owner", "root"])
def test_t12_no_page_is_framed_or_guessed_at(visits, who):
    for each in visits(who):
        assert "X-Frame-Options: DENY" in each.text, each.path
        assert "frame-ancestors 'none'" in each.text, each.path
        assert "X-Content-Type-Options: nosniff" in each.text, each.path


@pytest.mark.parametrize("who", ["stranger", "owner"])
def test_t12_no_page_sends_one_elsewhere(world, visits, who):
    client = signed_in(world.people[who])
    for each in visits(who):
        if each.of == "theirs" and not each.path.startswith("/admin/") and each.path != "/account/logout/":
            elsewhere = "//evil.example/"
            answer = client.get(f"{each.path}?next={elsewhere}&url={elsewhere}&redirect={elsewhere}")
            assert not re.match(r"\s*(https?:)?[/\\]{2}evil", answer.get("Location", "")), each.path


# Questions in the address (T2).


def questions(rows):
    """Values of another tenant under every name that a page might ask for."""
    key, tenant, user = rows[ApiKey][0], rows[Tenant][0], rows[User][0]
    names = {
        "of": [f"tenant-{tenant.pk}", f"user-{user.pk}", f"key-{key.pk}", "all"],
        # What one page calls so, another does not know, and leaves out.
        "tenant_id={0}&team={0}&tenant__id={0}&tenant": [tenant.pk],
        "user_id={0}&owner={0}&by={0}&user": [user.pk],
        "api_key={0}&key_id={0}&prefix={0}&key": [key.pk, key.prefix],
        "q": [key.prefix], "o": ["-1", "user__password"], "group": ["tenant", "key"],
        "days": ["90", "99999"], "from": ["0001-01-01"], "to": ["9999-12-31"], "before": ["9999"],
        "page": ["9999"], "model": ["*"],
    }  # fmt: skip
    return [f"?{name.format(value)}={value}" for name, values in names.items() for value in values]


def test_t2_no_question_in_the_address_leads_to_another_tenant(world, visits, who="owner"):
    client = signed_in(world.people[who])
    asked = [each for each in visits(who) if each.status == 200 and each.path != "/account/logout/"
             and (not each.page.parameters or each.of == "ours")
             and not each.path.startswith(("/account/", "/livez", "/readyz", "/metrics", "/invitation/"))]  # fmt: skip
    seen = set()
    for each in asked:
        if each.page.template in seen:
            continue
        seen.add(each.page.template)
        for question in questions(world.theirs):
            answer = client.get(each.path + question)
            told = text_of(answer)
            assert answer.status_code in (200, 302, 400, 403, 404), f"{each.path}{question}"
            assert THEIRS not in told, f"{each.path}{question} tells {who}"


SECRET_COLUMNS = {
    "password", "digest", "previous_digest", "credential_encrypted", "client_key_encrypted",
    "proxy_credential_encrypted", "sealed", "data", "secret", "token",
}  # fmt: skip


def lookups_of_secrets(model, depth=2):
    for column in model._meta.get_fields():
        if not getattr(column, "concrete", False):
            continue
        if column.name in SECRET_COLUMNS:
            yield column.name
        elif isinstance(column, models.ForeignKey) and depth:
            yield from (f"{column.name}__{rest}" for rest in lookups_of_secrets(column.remote_field.model, depth - 1))


@pytest.mark.parametrize("model", admin.site._registry, ids=lambda model: model._meta.label)
def test_t2_lists_of_the_admin_answer_no_question_about_a_secret(world, model):
    """A filter that may be asked letter by letter tells a secret letter by letter."""
    client = signed_in(world.people["deputy"])
    address = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
    if client.get(address).status_code != 200:
        return
    for lookup in lookups_of_secrets(model):
        for operator in ("startswith", "gt", "contains", "regex", "isnull"):
            answer = client.get(f"{address}?{lookup}__{operator}=0")
            assert answer.status_code in (302, 400), f"{lookup}__{operator}"


# What staff may see.


def test_t3_each_table_needs_a_permission_of_its_own(world):
    """With the permissions for all others, none of its pages opens."""
    opened = 0
    for name, model in admin_tables().items():
        own = Q(content_type__app_label=model._meta.app_label, content_type__model=model._meta.model_name)
        with rolled_back():
            client = signed_in(
                staff(f"without {name}", *Permission.objects.exclude(own).values_list("codename", flat=True))
            )
            for page in pages():
                if page.model is model and page.name:
                    found = visit(client, page, page.paths(world.theirs)[0], "theirs")
                    assert found.status in (403, 405), f"{found.path} opens without a permission for {name}"
                    assert THEIRS not in found.text
                    opened += 1
    assert opened > 100
