"""Hostile texts in every column of every table, and every page that shows them (threats T8, T10)."""

import csv
import io
import json
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from django.test import Client, override_settings

from tenants.models import User
from tests.factories import make_admin
from tests.walk.conftest import rolled_back
from tests.walk.pages import pages
from tests.walk.rows import Rows

pytestmark = pytest.mark.django_db
csv.field_size_limit(1 << 24)  # one of the texts is long

TEXTS = {
    "markup": '"><img src=x onerror=zq()><script>zq()</script>{{31337*3}}{% zq %}\u202e<zq zq=1>',
    "addresses": "javascript:zq()//\n'--></title></textarea><svg/onload=zq()>\x00\r\nSet-Cookie: zq=1",
    "formulas": '=HYPERLINK("http://evil.example","zq")' + "<b zq=1>" * 20_000,
}
# Where an attribute leads.
ADDRESSES = {"href", "src", "action", "formaction", "data", "poster", "srcset", "xlink:href", "data-url", "data-href"}
# Paths of which no other page shows more.
SHOWN_ONCE_MORE = ("/account/logout/", "/admin/logout/")


class Reader(HTMLParser):
    """Notes what came out of a text: an element, an attribute, a script, an address."""

    def __init__(self):
        super().__init__()
        self.odd: list[str] = []
        self.inside = ""
        self.is_data = False

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        given = dict(attributes)
        if not tag.replace("-", "").isalnum() or tag == "zq" or "zq" in names or len(names) != len(set(names)):
            self.odd.append(f"<{tag} {names}>")
        self.odd += [f"<{tag} {name}=…>" for name in names if name.startswith("on") or name == "style"]
        for name in ADDRESSES & given.keys():
            scheme = urlsplit((given[name] or "").strip()).scheme.lower()
            if scheme not in ("", "http", "https", "mailto") and not (given[name] or "").startswith("data:image/"):
                self.odd.append(f"<{tag} {name}={given[name][:40]!r}>")
        if tag in ("script", "style"):
            self.inside = tag
            self.is_data = given.get("type") == "application/json"
            if tag == "style" or not (given.get("src") or self.is_data):
                self.odd.append(f"<{tag}> of its own")

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data):
        if self.inside and not self.is_data and data.strip():
            self.odd.append(f"script: {data[:40]!r}")
        if self.inside and self.is_data:
            json.loads(data)


def oddities(answer):
    kind = answer.get("Content-Type", "").split(";")[0]
    assert "zq" not in answer.cookies, "a cookie came out of a text"
    body = b"".join(answer.streaming_content) if answer.streaming else answer.content
    text = body.decode()
    if kind == "text/html":
        assert "94011" not in text, "the template language was run"
        reader = Reader()
        reader.feed(text)
        reader.close()
        return reader.odd
    assert answer["X-Content-Type-Options"] == "nosniff"
    if kind == "application/json":
        json.loads(text)
    elif kind == "text/csv":
        return [
            cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row if cell[:1] in tuple("=+-@\t\r")
        ]
    else:
        assert kind in ("", "text/plain", "text/javascript", "application/javascript"), kind
    return []


@pytest.fixture(scope="module")
def hostile(django_db_setup, django_db_blocker):
    """By the name of a text, the rows that hold it."""
    hasher = "django.contrib.auth.hashers.MD5PasswordHasher"
    options = {"PASSWORD_HASHERS": [hasher], "RATELIMIT_ENABLE": False}
    with django_db_blocker.unblock(), override_settings(**options), rolled_back():
        make_admin("root")
        yield {name: Rows(text).make_all() for name, text in TEXTS.items()}


@pytest.mark.parametrize(
    ("who", "text"), [("root", "markup"), ("root", "addresses"), *(("owner", text) for text in TEXTS)]
)
def test_t8_no_page_lets_a_text_out(hostile, text, who):
    rows = hostile[text]
    client = Client()
    client.force_login(User.objects.get(username="root") if who == "root" else rows[User][0])
    shown = 0
    for page in pages():
        paths = page.paths(rows)[: 1 if page.template.startswith("admin/") else 3]
        if who != "root" and page.template.startswith("admin/"):
            continue
        if page.name.endswith("_changelist"):
            paths.append(f"{paths[0]}?q=%22%3E%3Czq%20zq=1%3E")
        for path in paths:
            if path in SHOWN_ONCE_MORE:
                continue
            answer = client.get(path)
            assert oddities(answer) == [], path
            shown += "zq" in getattr(answer, "content", b"").decode()
    print(f"\n  shown on {shown} pages", end=" ")
    assert shown > (60 if who == "root" else 8)


@pytest.mark.parametrize("odd", ["<zq>", "<b zq=1>", "<a href='javascript:x'>", "<p onclick=x>", "<script>x</script>",
                                 "<script src=x>y</script>", "<p style=x>", "<a href=1 href=2>"])  # fmt: skip
def test_the_reader_sees_what_comes_out(odd):
    reader = Reader()
    reader.feed(f"<p>{odd}</p>")
    assert reader.odd


@pytest.mark.parametrize("path", ["/", "/usage/", "/account/login/", "/admin/", "/keys/", "/nothing/"])
@pytest.mark.parametrize("name", ["next", "of", "q", "days", "e"])
def test_t8_what_the_address_says_is_not_let_out(hostile, path, name):
    client = Client()
    for signed_in in (False, True):
        if signed_in:
            client.force_login(User.objects.get(username="root"))
        for text in (TEXTS["markup"], TEXTS["addresses"]):
            answer = client.get(path, {name: text}, follow=True)
            assert oddities(answer) == []
            assert answer.status_code < 500
