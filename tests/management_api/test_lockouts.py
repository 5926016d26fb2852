"""Changes of IP rules that would shut somebody out, or let everybody in: refused until they are confirmed."""

import pytest

from tenants.models import IPRule
from tests.factories import make_ip_rule, make_key, make_usage
from tests.management_api.conftest import error

pytestmark = pytest.mark.django_db
NEEDED = ("confirmation_needed", "")
FOR_ALL = {"cidr": "127.0.0.0/8", "action": "deny"}


def said(answer):
    return answer.json()["error"]["message"]


def test_a_program_does_not_shut_itself_out_from_the_api_by_mistake(program, root):
    mine = program(root)
    answer = mine.post("ip-rules", FOR_ALL)
    assert error(answer, 409) == NEEDED
    assert "127.0.0.1, where you are now, would be shut out from calls and from this API" in said(answer)
    assert "?confirmed=true" in said(answer)
    assert not IPRule.objects.exists()
    assert error(mine.post("ip-rules?confirmed=1", FOR_ALL), 409) == NEEDED
    assert mine.post("ip-rules?confirmed=true", FOR_ALL).status_code == 201


def test_rules_of_a_tenant_ask_back_for_who_calls_and_not_for_the_program(program, alice, acme):
    mine, body = program(alice), {"cidr": "10.0.0.0/8", "action": "allow", "tenant": "acme"}
    made = mine.post("ip-rules", body)  # the program is elsewhere, which says nothing
    assert made.status_code == 201
    path = f"ip-rules/{made.json()['id']}"
    answer = mine.delete(path)
    assert error(answer, 409) == NEEDED
    assert "every address that none denies could call" in said(answer)
    assert mine.delete(f"{path}?confirmed=true").status_code == 204
    make_usage(make_key(acme).row, client_address="192.0.2.7")
    answer = mine.post("ip-rules", body)
    assert error(answer, 409) == NEEDED
    assert "came from lately would be shut out: 192.0.2.7" in said(answer)
    assert mine.post("ip-rules", {**body, "cidr": "192.0.2.0/24"}).status_code == 201


def test_who_calls_from_where_the_program_is_counts_too(program, alice, acme):
    make_usage(make_key(acme).row, client_address="127.0.0.1")
    answer = program(alice).post("ip-rules", {"cidr": "10.0.0.0/8", "action": "allow", "tenant": "acme"})
    assert error(answer, 409) == NEEDED
    assert "came from lately would be shut out: 127.0.0.1" in said(answer)


def test_t1_addresses_are_told_to_tokens_that_may_read(program, alice, acme):
    make_usage(make_key(acme).row, client_address="192.0.2.7")
    body = {"cidr": "10.0.0.0/8", "action": "allow", "tenant": "acme"}
    answer = program(alice, "rules:write").post("ip-rules", body)
    assert error(answer, 409) == NEEDED
    assert "192.0.2.7" not in answer.content.decode()


def test_the_document_tells_how_to_confirm(program, root):
    paths = program(root).get("openapi.json").json()["paths"]
    asking = {
        f"{method} {path.removeprefix('/manage/api/')}"
        for path, operations in paths.items()
        for method, operation in operations.items()
        if any(parameter["name"] == "confirmed" for parameter in operation["parameters"])
    }
    assert asking == {"post ip-rules", "patch ip-rules/{id}", "delete ip-rules/{id}"}


def test_a_change_that_shuts_nobody_out_is_made_at_once(program, root):
    mine, rule = program(root), make_ip_rule(cidr="10.0.0.0/8", action="deny")
    assert mine.patch(f"ip-rules/{rule.pk}", {"note": "the old office"}).status_code == 200
    assert error(mine.patch(f"ip-rules/{rule.pk}", {"cidr": "127.0.0.1"}), 409) == NEEDED
    rule.refresh_from_db()
    assert rule.cidr == "10.0.0.0/8"
    assert mine.patch(f"ip-rules/{rule.pk}?confirmed=true", {"cidr": "127.0.0.1"}).status_code == 200
