"""Who may add a pass-through route, and what the form says to one that cannot be."""

import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse
from pytest_django.asserts import assertContains

from proxy.models import PassThroughRoute
from tests.factories import make_admin, make_user

pytestmark = pytest.mark.django_db

ADD = "admin:proxy_passthroughroute_add"
FORM = {"path": "/api/rerank", "method": "POST", "right": "infer", "names_model": "on", "enabled": "on", "note": ""}


def test_t3_superusers_alone_add_one(client):
    staff = make_user("staff", is_staff=True)
    staff.user_permissions.set(Permission.objects.all())
    client.force_login(staff)
    assert client.post(reverse(ADD), FORM).status_code == 403
    assert not PassThroughRoute.objects.exists()
    client.force_login(make_admin())
    assert client.post(reverse(ADD), FORM).status_code == 302
    assert str(PassThroughRoute.objects.get()) == "POST /api/rerank"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"path": "/api/chat"}, "This path is the gateway&#x27;s own."),
        ({"path": "/admin/"}, "Write an exact path below /api/ or /v1/"),
        ({"path": "/api/v2/pull"}, "This looks like the management of models."),
        ({"method": "GET"}, "Only the body of a POST can name a model."),
    ],
)
def test_p1_the_form_says_what_cannot_be(client, changes, says):
    client.force_login(make_admin())
    assertContains(client.post(reverse(ADD), {**FORM, **changes}), says)
    assert not PassThroughRoute.objects.exists()
