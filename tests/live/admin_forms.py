"""The admin pages as a browser uses them: a session, the form as it was served, its fields sent back."""

from html.parser import HTMLParser

import httpx

from tests.no_tls import NO_TLS

USERNAME, PASSWORD = "root", "correct horse battery staple"


class Form(HTMLParser):
    """The fields of a page's main form with the values they have."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fields: dict[str, str | list[str]] = {}
        self._select = self._area = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        name, value = given.get("name", ""), given.get("value", "")
        if tag == "input" and name and given.get("type") not in ("submit", "button", "file"):
            if given.get("type") in ("checkbox", "radio"):
                if "checked" in given:
                    self.fields[name] = value or "on"
            else:
                self.fields[name] = value
        elif tag == "select":
            self._select = name
        elif tag == "option" and self._select and "selected" in given:
            self.fields[self._select] = value
        elif tag == "textarea":
            self._area = name
            self.fields[name] = ""

    def handle_endtag(self, tag):
        if tag == "select":
            self._select = ""
        elif tag == "textarea":
            self._area = ""

    def handle_data(self, data):
        if self._area:
            # The first line break after the tag is the template's.
            self.fields[self._area] += data if self.fields[self._area] else data.removeprefix("\n")


class Admin:
    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(
            base_url=url, trust_env=False, verify=NO_TLS, timeout=30, headers={"referer": url}
        )

    async def close(self) -> None:
        await self.http.aclose()

    async def sign_in(self) -> None:
        answer = await self.submit("/account/login/", login=USERNAME, password=PASSWORD, next="/admin/")
        assert answer.headers["location"] == "/admin/"

    async def submit(self, path: str, /, drop: tuple[str, ...] = (), **changes: str) -> httpx.Response:
        """Sends the form of a page with some of its fields changed; asserts that it was accepted."""
        page = await self.http.get(path)
        assert page.status_code == 200, (path, page.status_code, page.text[:500])
        fields = {name: value for name, value in Form(page.text).fields.items() if name not in drop}
        return await self.post(path, {**fields, **changes})

    async def post(self, path: str, fields: dict[str, str]) -> httpx.Response:
        fields.setdefault("csrfmiddlewaretoken", self.http.cookies.get("csrftoken", ""))
        answer = await self.http.post(path, data=fields)
        assert answer.status_code == 302, (path, answer.status_code, answer.text[:20_000])
        return answer
