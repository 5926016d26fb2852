"""A browser, as people have it, in front of a real gateway: Debian's Chromium, steered by Playwright."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from proxy.fake_ollama import FakeOllama
from tests.live.conftest import make_shared_gateway, shared_fake
from tests.live.gateway import ROOT, Gateway

__all__ = ["make_shared_gateway", "shared_fake"]

AXE = (Path(__file__).parent / "axe.min.js").read_text(encoding="utf-8")
expect.set_options(timeout=30_000)
WIDTHS = {"wide": 1280, "narrow": 390}
THEMES = ("light", "dark")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/browser" in str(item.path):
            item.add_marker(pytest.mark.live)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    executable = shutil.which("chromium") or "/usr/bin/chromium"
    async with async_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox.
        running = await playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        await running.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the pages go: SCREENSHOTS, for whoever wants to look at them."""
    directory = Path(os.getenv("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    directory.mkdir(parents=True, exist_ok=True)
    return directory


class Visitor:
    """One browser window, and what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("requestfailed", lambda request: self._failed(request))

    def _note(self, kind: str, text: str) -> None:
        # A 404 or 400 that a test asks for is written there as well.
        if kind in ("error", "warning") and not re.search("status of 40[01345]", text):
            self.problems.append(text)

    def _failed(self, request: object) -> None:
        if request.failure != "net::ERR_ABORTED":  # a page that was left
            self.problems.append(f"{request.url}: {request.failure}")

    async def open(self, path: str) -> int:
        answer = await self.page.goto(path if path.startswith("http") else self.url + path)
        return answer.status

    async def sign_in(self, name: str, password: str) -> None:
        await self.open("/account/login/")
        await self.page.get_by_label("User name or e-mail address").fill(name)
        await self.page.get_by_label("Password", exact=True).fill(password)
        await self.page.get_by_role("button", name="Sign in", exact=True).click()
        await self.page.wait_for_url(f"{self.url}/")

    async def kind_of(self, path: str) -> str:
        """The content type of what a GET answers in the end, without showing it; "part" for a part of a page."""
        answer = await self.page.context.request.get(self.url + path, headers={"accept": "text/html"})
        kind = answer.headers.get("content-type", "").split(";")[0]
        return "part" if kind == "text/html" and "<html" not in await answer.text() else kind

    async def breaches(self, rules: list[str] = ()) -> list[str]:
        """What axe finds serious or critical on the page as it is, by all of its rules or by some."""
        if not await self.page.evaluate("typeof axe === 'object'"):
            await self.page.evaluate(AXE)
        options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
        found = await self.page.evaluate("options => axe.run(document, options)", options)
        return [
            f"{item['id']} at {node['target']}: {node['failureSummary']}"
            for item in found["violations"]
            if item["impact"] in ("serious", "critical")
            for node in item["nodes"]
        ]

    async def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return await self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


async def new_visitor(browser: Browser, url: str, *, width: int = 1280, theme: str = "light") -> Visitor:
    context: BrowserContext = await browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
    )
    context.set_default_timeout(30_000)
    return Visitor(await context.new_page(), url)


@pytest.fixture(scope="module")
def bare_gateway(make_shared_gateway, shared_fake: FakeOllama) -> Iterator[Gateway]:
    """Nobody has an account there, and its one backend is the address that every installation begins with."""
    gateway: Gateway = make_shared_gateway()
    # As it is found by whoever starts it with nothing but a port.
    gateway.env.pop("SITE_URL", None)
    yield gateway.start()


@pytest.fixture(scope="module")
def demo_gateway(make_shared_gateway, shared_fake: FakeOllama) -> Gateway:
    """With the people, keys and usage of the demo. `.password` opens all accounts."""
    gateway: Gateway = make_shared_gateway()
    gateway.env.update(SITE_URL=gateway.url, DEMO="True")
    made = subprocess.run(
        [sys.executable, "manage.py", "shell", "--no-imports", "-c",
         f"from proxy import demo; print(demo.make([{shared_fake.url!r}]).password)"],
        cwd=ROOT, env=gateway.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    gateway.password = made.stdout.strip().splitlines()[-1]
    return gateway.start()
