"""The first account, by the link that the start prints, and the steps after it."""

import json
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.urls import reverse

from proxy.models import Backend
from tenants import first_run
from tenants.models import ApiKey, SetupLink, User
from tests.factories import NOON, PASSWORD, make_admin, make_key, make_tenant, make_usage, make_user

pytestmark = pytest.mark.django_db

ACCOUNT = {"username": "ada", "email": "ada@example.com", "tenant": "ops", "password1": PASSWORD, "password2": PASSWORD}


def new_path():
    return first_run.new_link().removeprefix("http://localhost:8080")


def test_the_link_makes_an_administrator_who_owns_a_tenant_and_then_ends(client):
    path = new_path()
    assert client.get(path).status_code == 200
    assert client.post(path, ACCOUNT)["location"] == reverse("setup_backend")
    ada = User.objects.get()
    assert (ada.is_staff, ada.is_superuser, ada.check_password(PASSWORD)) == (True, True, True)
    assert [tenant.name for tenant in ada.tenants_owned()] == ["ops"]
    assert client.get(reverse("setup_backend")).status_code == 200
    client.logout()
    assert client.get(path).status_code == 404
    assert client.post(path, {**ACCOUNT, "username": "eve"}).status_code == 404
    assert User.objects.count() == 1


def test_each_start_ends_the_links_before(client):
    old, new = new_path(), new_path()
    assert client.get(old).status_code == 404
    assert client.post(old, ACCOUNT).status_code == 404
    assert client.get(new).status_code == 200


def test_where_there_is_an_account_no_link_is_made_and_none_works(client):
    path = new_path()
    make_user("somebody")
    assert first_run.new_link() is None
    assert client.get(path).status_code == 404
    assert client.post(path, ACCOUNT).status_code == 404
    assert User.objects.count() == 1


def test_the_database_does_not_hold_the_link():
    token = new_path().split("/")[-2]
    assert token.encode() not in bytes(SetupLink.objects.get().digest)


def test_without_an_account_the_sign_in_page_says_where_the_link_is(client):
    assert "printed a link" in client.get(reverse("account_login")).content.decode()
    make_user("somebody")
    assert "printed a link" not in client.get(reverse("account_login")).content.decode()


def test_the_steps_go_on_where_they_were_left(client):
    root = make_admin("root")
    client.force_login(root)

    def goes_to():
        return client.get(reverse("setup"))["location"]

    assert goes_to() == reverse("setup_backend")
    Backend.objects.create(name="default", url="http://127.0.0.1:11434")
    made = client.post(reverse("setup_key"), {"name": "first"})
    key = ApiKey.objects.get()
    assert made["location"] == reverse("setup_answer", args=[key.prefix]) == goes_to()
    assert key.tenant.name == "default"
    page = client.get(made["location"])
    assert page.context["clear_text"] in page.content.decode()
    assert client.get(made["location"]).context["clear_text"] == ""


def test_the_answer_is_told_with_its_tokens_and_speed(client):
    root = make_admin("root")
    client.force_login(root)
    client.post(reverse("setup_key"), {"name": "first"})
    key = ApiKey.objects.get()
    state = reverse("setup_answer_state", args=[key.prefix])
    assert client.get(state).json() == {"received": False}
    make_usage(make_key(key.tenant).row)  # of another key
    assert client.get(state).json() == {"received": False}
    make_usage(key, at=NOON, outcome="failed", error="no_backend", completion_tokens=0, decode_us=0)
    told = client.get(state).json()
    assert (told["received"], told["ok"], told["error"]) == (True, False, "no_backend")
    assert told["tokens_per_second"] is None
    make_usage(key, at=NOON + timedelta(minutes=1), completion_tokens=30, decode_us=2_000_000, total_us=2_500_000)
    told = client.get(state).json()
    assert (told["ok"], told["answer_tokens"], told["tokens_per_second"], told["seconds"]) == (True, 30, 15.0, 2.5)


@pytest.mark.parametrize("state", [{"archived_at": NOON}, {"enabled": False}])
def test_no_key_is_made_in_a_tenant_that_is_off(client, state):
    make_tenant("default", **state)
    client.force_login(make_admin())
    answer = client.post(reverse("setup_key"), {"name": "first key"})
    assert answer.status_code == 403
    assert "in the admin, under Tenants" in answer.content.decode()
    assert not ApiKey.objects.exists()


def test_a_backend_that_the_environment_owns_is_not_changed_here(client):
    Backend.objects.create(name="default", url="http://127.0.0.1:11434", set_by_environment=True)
    client.force_login(make_admin("root"))
    form = {"name": "x", "url": "http://10.0.0.9:11434", "slots": "3"}
    assert client.post(reverse("setup_backend"), form)["location"] == reverse("setup_key")
    row = Backend.objects.get()
    assert (row.name, row.url, row.slots) == ("default", "http://127.0.0.1:11434", 3)


def test_b14_a_forbidden_address_is_refused_by_the_form(client):
    client.force_login(make_admin("root"))
    form = {"name": "x", "url": "http://169.254.169.254", "slots": "1", "test": "1"}
    answer = client.post(reverse("setup_backend"), form)
    assert answer.context["form"].errors["url"]
    assert "found" not in answer.context


def test_t3_a_credential_is_not_sent_to_another_address(client):
    """As in the admin, whose form asks for it anew."""
    row = Backend.objects.create(name="gpu", url="http://127.0.0.1:9", credential_encrypted=b"sealed")
    client.force_login(make_admin("root"))
    form = {"name": "gpu", "url": "http://127.0.0.2:9", "slots": "2"}
    for buttons in ({"test": "1"}, {}):
        answer = client.post(reverse("setup_backend"), {**form, **buttons})
        assert "credential" in str(answer.context["form"].errors["url"])
    row.refresh_from_db()
    assert row.url == "http://127.0.0.1:9"


class Ollama(BaseHTTPRequestHandler):
    """As much of one as a look at it needs."""

    ANSWERS = {
        "/api/version": {"version": "0.33.0"},
        "/api/tags": {"models": [{"name": "llama3.2:latest", "model": "llama3.2:latest", "digest": "d", "size": 1}]},
        "/api/ps": {"models": []},
    }

    def do_GET(self):
        body = json.dumps(self.ANSWERS[self.path]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def ollama():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ollama)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.django_db(transaction=True)
def test_a_backend_is_tested_and_once_saved_its_models_are_known_at_once(client, ollama):
    client.force_login(make_admin("root"))
    form = {"name": "gpu", "url": ollama, "slots": "1"}
    page = client.post(reverse("setup_backend"), {**form, "test": "1"})
    assert "Ollama 0.33.0 answers, with 1 model:" in page.content.decode()
    assert not Backend.objects.exists()
    client.post(reverse("setup_backend"), form)
    made = client.post(reverse("setup_key"), {"name": "first"})
    assert client.get(made["location"]).context["example_model"] == "llama3.2:latest"


@pytest.mark.django_db(transaction=True)
def test_a_backend_that_does_not_answer_is_said_to_and_can_be_saved_all_the_same(client):
    client.force_login(make_admin("root"))
    form = {"name": "gpu", "url": "http://127.0.0.1:9", "slots": "1"}
    page = client.post(reverse("setup_backend"), {**form, "test": "1"})
    assert "It cannot be connected to." in page.content.decode()
    assert client.post(reverse("setup_backend"), form)["location"] == reverse("setup_key")
