"""Sign-in and pages of a running gateway: what ends a session ends it everywhere; pages on a port of their own."""

import asyncio
import json
import re

import pytest
import pytest_asyncio
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.models import Session
from django.test import override_settings
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tenants.models import User
from tests.live.signed_in import make_person, sign_in
from tests.live.test_live_page import Page
from tests.ports import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

HTML = {"accept": "text/html"}


def as_a_browser(session):
    return {**HTML, "cookie": f"sessionid={session}"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(make_shared_gateway, shared_fake):
    """Two workers, so that a session that ends at one is looked for at the other."""
    made = make_shared_gateway(workers=2)
    made.make_backend(shared_fake.url)
    made.admin_port = free_port()
    made.arguments = ["--admin-port", str(made.admin_port)]
    made.pages = f"http://127.0.0.1:{made.admin_port}"
    return await asyncio.to_thread(made.start)


def open_socket(gateway, session, url):
    headers = {"Cookie": f"sessionid={session}"}
    return connect(url.replace("http:", "ws:") + "/ws/live", origin=url, additional_headers=headers, proxy=None)


async def sign_out(gateway, user, session):
    """As the button does."""
    async with gateway.client() as client:
        page = await client.get(f"{gateway.pages}/account/logout/", headers=as_a_browser(session))
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
        headers = {"cookie": f"sessionid={session}; csrftoken={page.cookies['csrftoken']}"}
        data = {"csrfmiddlewaretoken": token}
        answer = await client.post(f"{gateway.pages}/account/logout/", headers=headers, data=data)
        assert answer.status_code == 302


async def change_password(gateway, user, session):
    gateway.rows(User).filter(pk=user.pk).update(password=make_password("another long one!"))


async def disable(gateway, user, session):
    gateway.rows(User).filter(pk=user.pk).update(is_active=False)


async def end_the_session(gateway, user, session):
    gateway.rows(Session).filter(session_key=session).delete()


@pytest.mark.parametrize("ended_by", [sign_out, change_password, disable, end_the_session])
async def test_a12_what_ends_a_session_ends_it_at_once_everywhere(gateway, ended_by):
    with override_settings(SECRET_KEY=gateway.env["SECRET_KEY"]):
        user = make_person(gateway, f"nina-{ended_by.__name__}", acme="owner")
        session, bystander = sign_in(gateway, user), sign_in(gateway, make_person(gateway, f"ben-{ended_by.__name__}"))
    async with (
        gateway.client() as client,
        open_socket(gateway, session, gateway.pages) as socket, open_socket(gateway, bystander, gateway.pages) as other,
    ):  # fmt: skip
        page = Page(socket)
        await page.next()
        assert (await client.get(f"{gateway.pages}/keys/", headers=as_a_browser(session))).status_code == 200
        await ended_by(gateway, user, session)
        # Each on a connection of its own, so that both workers are asked.
        for _ in range(8):
            async with gateway.client() as fresh:
                answer = await fresh.get(f"{gateway.pages}/keys/", headers=as_a_browser(session))
                assert answer.status_code == 302
                assert "/account/login/" in answer.headers["location"]
        assert await page.closed() == 4401
        assert json.loads(await other.recv())["type"] == "picture"


async def test_t9_pages_have_a_port_of_their_own_and_calls_are_not_there(gateway):
    _, key = gateway.make_key("at its port")
    root = make_person(gateway, "root")
    gateway.rows(User).filter(pk=root.pk).update(is_staff=True, is_superuser=True)
    session = sign_in(gateway, root)
    await gateway.until_it_lists("llama3.2", key=key)
    async with gateway.client(key) as client:
        for path in ("/account/login/", "/admin/", "/keys/", "/live/", "/static/gateway/gateway.css", "/usage/"):
            answer = await client.get(gateway.url + path, headers=as_a_browser(session))
            assert (answer.status_code, answer.text) == (404, ""), path
        front = await client.get(gateway.url + "/", headers=HTML)
        assert (front.status_code, front.text) == (200, "Ollama is running")
        for path in ("/api/version", "/api/tags", "/v1/models", "/livez", "/readyz"):
            assert (await client.get(gateway.url + path)).status_code == 200, path
        for path in ("/api/version", "/api/tags", "/v1/models", f"/k/{key}/api/tags", "/api/chat"):
            answer = await client.get(gateway.pages + path, headers=as_a_browser(session))
            assert (answer.status_code, answer.text) == (404, ""), path
        for path in ("/", "/admin/", "/keys/new/", "/live/", "/static/gateway/gateway.css", "/livez"):
            answer = await client.get(gateway.pages + path, headers=as_a_browser(session))
            assert answer.status_code in (200, 403), path
            assert "Ollama is running" not in answer.text
    with pytest.raises(InvalidStatus):
        async with open_socket(gateway, session, gateway.url):
            raise AssertionError("a live page at the port of the calls")
    async with open_socket(gateway, session, gateway.pages) as socket:
        assert json.loads(await socket.recv())["type"] == "picture"


async def test_t9_what_is_printed_leads_to_the_right_port(gateway):
    link = re.search(r"http\S+/setup/\S+/", gateway.log())[0]
    assert link.startswith(f"http://localhost:{gateway.admin_port}/setup/")
    owner = make_person(gateway, "olga", acme="owner")
    row, _ = gateway.make_key("printed")
    async with gateway.client() as client:
        headers = as_a_browser(sign_in(gateway, owner))
        page = await client.get(f"{gateway.pages}/keys/{row.prefix}/", headers=headers)
    assert f"http://localhost:{gateway.port}/api/chat" in page.text
    assert f"localhost:{gateway.admin_port}/api" not in page.text


async def test_the_port_of_the_pages_is_none_that_is_taken(make_gateway):
    wrong = make_gateway()
    wrong.arguments = ["--admin-port", str(wrong.port)]
    wrong.start(wait=False)
    assert await asyncio.to_thread(wrong.process.wait, 60) == 1
    wrong.process = None
    assert "The port of the pages is taken" in wrong.log()
