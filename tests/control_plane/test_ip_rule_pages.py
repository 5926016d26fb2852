"""IP rules on the pages: whom a change shuts out is said first; addresses are tested; owners keep to their own."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from proxy import lockouts
from proxy.client_address import parse_address
from proxy.models import IPRuleUse
from tenants.models import IPRule, Tenant
from tests.factories import make_admin, make_ip_rule, make_key, make_tenant, make_usage, make_user

pytestmark = pytest.mark.django_db

ADD, LIST = "/admin/tenants/iprule/add/", "/admin/tenants/iprule/"
HERE, THERE = "127.0.0.1", "203.0.113.9"  # where the test client is; and somewhere else
SHUT_OUT = "where you are now, would be shut out"


@pytest.fixture
def admin(client):
    client.force_login(make_admin())
    return client


@pytest.fixture
def cast():
    """Ann owns acme, Charlie owns another tenant; each has a key."""
    acme, other = make_tenant("acme"), make_tenant("other")
    keys = make_key(acme, "ours").row, make_key(other, "theirs").row
    return make_user("ann", tenant=acme, role="owner"), make_user("charlie", tenant=other, role="owner"), *keys


def form(**fields):
    return {"cidr": "10.0.0.0/8", "action": "deny", **fields}


def test_a_rule_that_shuts_out_who_makes_it_is_asked_about_first(admin):
    for cidr, action in (("127.0.0.0/8", "deny"), ("10.0.0.0/8", "allow"), ("0.0.0.0/0", "deny")):
        page = admin.post(ADD, form(cidr=cidr, action=action))
        assert SHUT_OUT in page.content.decode()
        assert not IPRule.objects.exists()
    assert admin.post(ADD, form(cidr="0.0.0.0/0", confirmed="on")).status_code == 302
    assert IPRule.objects.get().cidr == "0.0.0.0/0"


def test_a_rule_that_shuts_out_nobody_is_not_asked_about(admin):
    assert admin.post(ADD, form()).status_code == 302
    admin.post(ADD, form(cidr="127.0.0.0/8", action="allow"))
    assert IPRule.objects.count() == 2


def test_a_change_is_asked_about_as_well(admin):
    rule = make_ip_rule("127.0.0.0/8", "allow")
    change = reverse("admin:tenants_iprule_change", args=[rule.pk])
    assert SHUT_OUT in admin.post(change, form(cidr="10.0.0.0/8", action="allow")).content.decode()
    rule.refresh_from_db()
    assert rule.cidr == "127.0.0.0/8"


@pytest.mark.parametrize("in_a_row", [False, True])
def test_deleting_says_whom_it_shuts_out_or_lets_in(admin, in_a_row):
    own, other = make_ip_rule("127.0.0.0/8", "allow"), make_ip_rule("10.0.0.0/8", "allow")

    def asked(*rules):
        if in_a_row:
            return admin.post(LIST, {"action": "delete_selected", "_selected_action": [rule.pk for rule in rules]})
        return admin.get(reverse("admin:tenants_iprule_delete", args=[rules[0].pk]))

    assert SHUT_OUT in asked(own).content.decode()
    assert "Beware" not in asked(other).content.decode()
    other.delete()
    assert "every address that none denies could call" in asked(own).content.decode()


def test_who_called_lately_is_looked_for(admin):
    key = make_key(make_tenant("acme")).row
    make_usage(key, client_address=THERE)
    for scope in ({"tenant": key.tenant_id}, {"key": key.pk}, {}):
        page = admin.post(ADD, form(cidr="203.0.113.0/24", **scope)).content.decode()
        assert f"came from lately would be shut out: {THERE}." in page
    assert not IPRule.objects.exists()


@pytest.mark.parametrize("rule", [
    {"cidr": "127.0.0.0/8", "action": "deny", "expires_at": timezone.now() - timedelta(hours=1)},
    {"cidr": "::ffff:10.0.0.0/104", "action": "deny"},
    {"cidr": "2001:db8::/32", "action": "deny"},
])  # fmt: skip
def test_what_does_not_hold_here_shuts_nobody_out(rule):
    assert lockouts.of_change(parse_address(HERE), added=IPRule(**rule)) == []


def test_an_address_by_a_unix_socket_is_shut_out_by_the_first_rule():
    assert "Unix socket" in lockouts.of_change(None, added=IPRule(cidr="10.0.0.0/8", action="deny"))[0]


def test_the_list_says_how_often_a_rule_decided(admin):
    rule = make_ip_rule("10.0.0.0/8", "deny")
    assert '<td class="field-hits">0</td>' in admin.get(LIST).content.decode()
    IPRuleUse.objects.create(rule=rule, hits=123, last_at=timezone.now())
    assert '<td class="field-hits">123</td>' in admin.get(LIST).content.decode()


def test_the_count_of_a_deleted_rule_goes_with_the_next_look():
    rule = make_ip_rule()
    IPRuleUse.objects.create(rule=rule, hits=1, last_at=timezone.now())
    kept = IPRuleUse.objects.create(rule=make_ip_rule("10.0.0.0/9"), hits=1, last_at=timezone.now())
    rule.delete()
    IPRuleUse.objects.of_deleted_rules().delete()
    assert list(IPRuleUse.objects.all()) == [kept]


def test_an_address_is_tested_in_every_scope(admin, cast):
    _, _, ours, theirs = cast
    make_ip_rule("10.0.0.0/8", "deny")
    make_ip_rule("203.0.113.0/24", "allow", tenant=ours.tenant)
    make_ip_rule("203.0.113.9/32", "deny", key=theirs)
    page = admin.get(reverse("admin:tenants_iprule_test"), {"address": THERE})
    found = {entry.scope: entry.allows for entry in page.context["found"]}
    assert found == {"Everybody": True, "Tenant acme": True, f"Key {theirs.prefix}, theirs": False}
    assert "Write an IP address" in admin.get(reverse("admin:tenants_iprule_test"), {"address": "x"}).content.decode()


# Owners


def test_owners_make_rules_for_their_tenant_and_its_keys(client, cast):
    ann, _, ours, theirs = cast
    client.force_login(ann)
    new = reverse("ip_rule_new", args=[ours.tenant_id])
    assert client.post(new, form()).status_code == 302
    assert client.post(new, form(cidr="10.1.0.0/16", key=ours.pk)).status_code == 302
    assert client.post(new, form(key=theirs.pk)).status_code == 200
    assert client.post(reverse("ip_rule_new", args=[theirs.tenant_id]), form()).status_code == 404
    made = {(rule.cidr, rule.tenant_id, rule.key_id) for rule in IPRule.objects.all()}
    assert made == {("10.0.0.0/8", ours.tenant_id, None), ("10.1.0.0/16", None, ours.pk)}


def test_owners_are_asked_before_they_shut_themselves_out(client, cast):
    ann, _, ours, _ = cast
    client.force_login(ann)
    new = reverse("ip_rule_new", args=[ours.tenant_id])
    page = client.post(new, form(cidr="10.0.0.0/8", action="allow")).content.decode()
    assert SHUT_OUT in page
    assert not IPRule.objects.exists()
    assert client.post(new, form(cidr="10.0.0.0/8", action="allow", asked="yes", confirmed="on")).status_code == 302
    delete = reverse("ip_rule_delete", args=[IPRule.objects.get().pk])
    assert "every address that none denies could call" in client.get(delete).content.decode()
    assert client.post(delete).status_code == 302
    assert not IPRule.objects.exists()


def test_owners_see_and_delete_no_others_rules(client, cast):
    ann, _, ours, theirs = cast
    client.force_login(ann)
    foreign = [
        make_ip_rule("198.51.100.0/24", "deny", tenant=theirs.tenant),
        make_ip_rule("198.51.100.0/25", "deny", key=theirs),
        make_ip_rule("198.51.100.0/26", "deny"),
        make_ip_rule("198.51.100.0/27", "allow", acts_as=ours),
    ]
    page = client.get(reverse("ip_rules"), {"address": "198.51.100.1"}).content.decode()
    assert "198.51.100.0" not in page
    for rule in foreign:
        assert client.post(reverse("ip_rule_delete", args=[rule.pk])).status_code == 404
    assert IPRule.objects.count() == 4


def test_t3_owners_see_the_rules_of_administrators_and_delete_only_their_own(client, cast):
    ann, _, ours, _ = cast
    client.force_login(ann)
    set_for_them = make_ip_rule("198.51.100.0/24", "deny", tenant=ours.tenant)
    client.post(reverse("ip_rule_new", args=[ours.tenant_id]), form(cidr="198.51.100.7/32", action="deny"))
    own = IPRule.objects.get(by_owners=True)
    page = client.get(reverse("ip_rules"), {"address": "198.51.100.7"}).content.decode()
    assert ">administrators<" in page
    assert "Tenant acme, by its owners" in page
    for rule, status in ((set_for_them, 404), (own, 302)):
        assert (reverse("ip_rule_delete", args=[rule.pk]) in page) is (rule == own)
        assert client.post(reverse("ip_rule_delete", args=[rule.pk])).status_code == status
    assert list(IPRule.objects.all()) == [set_for_them]


@pytest.mark.parametrize("role", ["member", "viewer"])
def test_others_make_no_rules(client, cast, role):
    client.force_login(make_user("bob", tenant=Tenant.objects.get(name="acme"), role=role))
    assert client.get(reverse("ip_rules")).status_code == 403
    assert client.post(reverse("ip_rule_new", args=[Tenant.objects.get(name="acme").pk]), form()).status_code == 403
