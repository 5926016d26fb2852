"""Every URL that the walk finds, in a browser: judged by axe in both themes, at two widths, pictured on request.

`SCREENSHOTS=/tmp/pictures pytest tests/browser/test_every_page.py` keeps the pictures for whoever wants to look.
"""

import os
import re

import pytest
import pytest_asyncio

from tests.browser.conftest import WIDTHS, new_visitor
from tests.walk.gateways import fill, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Rules of axe that depend on theme or width; the others need one look.
OF_THE_LOOK = ["color-contrast", "link-in-text-block", "scrollable-region-focusable"]
PAGES = {page.template or "home": page for page in opened()}


@pytest.fixture(scope="module")
def rows(demo_gateway):
    return fill(demo_gateway, "An example")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def visitors(browser, demo_gateway, rows):
    """An administrator who owns a tenant, and a stranger."""
    signed_in, stranger = [await new_visitor(browser, demo_gateway.url) for _ in range(2)]
    await signed_in.sign_in("admin", demo_gateway.password)
    return signed_in, stranger


async def shoot(visitor, directory, name):
    if os.getenv("SCREENSHOTS"):
        # With its caret: Playwright hides it by a style of its own, which the policy forbids.
        await visitor.page.screenshot(path=directory / f"{name}.png", full_page=True, caret="initial")


# Headings and buttons that something else lies on, each looked at in the middle of the window.
COVERED = """() => [...document.querySelectorAll("h1, h2, main button, #content button, #content input[type=submit]")]
    .slice(0, 25).filter((element) => {
        if (!element.checkVisibility() || element.closest(".visually-hidden, dialog:not([open])")) return false;
        element.scrollIntoView({ block: "center", inline: "center" });
        const box = element.getBoundingClientRect();
        const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
        return top && !element.contains(top) && !top.contains(element);
    }).map((element) => element.outerHTML.slice(0, 80))"""


async def judge(visitor, name, screenshots):
    page = visitor.page
    found = {}
    for theme, size, rules in (
        ("light", "wide", []), ("dark", "narrow", OF_THE_LOOK), ("dark", "wide", None), ("light", "narrow", None),
    ):  # fmt: skip
        if rules is None and not os.getenv("SCREENSHOTS"):
            continue
        await page.emulate_media(color_scheme=theme)
        await page.set_viewport_size({"width": WIDTHS[size], "height": 900})
        await shoot(visitor, screenshots, f"{name}-{size}-{theme}")
        if (wider := await visitor.overflow()) > 0:
            found[f"{theme} {size}"] = f"{wider} px wider than the window"
        if covered := await page.evaluate(COVERED):
            found[f"{theme} {size} covered"] = covered
        if rules is not None and (breaches := await visitor.breaches(rules)):
            found[f"{theme} {size} axe"] = breaches
    await page.set_viewport_size({"width": WIDTHS["wide"], "height": 900})
    await page.emulate_media(color_scheme="light")
    return found


@pytest.mark.parametrize("name", PAGES)
async def test_every_page_is_for_everybody(visitors, rows, screenshots, name):
    """Nothing serious for axe, nothing wider than a phone, and neither an error nor a breach of the policy."""
    page = PAGES[name]
    path = page.paths(rows)[0]
    looked = set()
    for who, visitor in zip(("", "stranger-"), visitors, strict=True):
        visitor.problems.clear()
        kind = await visitor.kind_of(path)
        if kind != "text/html":
            continue
        status = await visitor.open(path)
        end = visitor.page.url.removeprefix(visitor.url)
        if end.split("?")[0] != path or end in looked:  # that page is looked at by its own name
            continue
        looked.add(path)
        assert status in (200, 401, 403, 404), path
        assert visitor.problems == [], path
        picture = who + (re.sub(r"\W+", "-", name).strip("-") or "home")
        assert await judge(visitor, picture, screenshots) == {}, f"{who} {path}"
        if status == 200:
            assert await visitor.page.title() not in ("", "Ollama Gateway")
            assert await visitor.page.locator("h1").count() >= 1
