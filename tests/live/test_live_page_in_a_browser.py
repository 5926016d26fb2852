"""The live page as people have it: in a browser, by mouse and keyboard, in light and dark."""

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import async_playwright, expect

from tests.live.signed_in import sign_in
from tests.live.test_live_page import PATIENCE, Cast, last_line, stream

AXE = Path(__file__).resolve().parents[1] / "browser" / "axe.min.js"


@pytest.fixture
async def browser():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        await browser.close()


async def page_in(browser, gateway, user, **options):
    context = await browser.new_context(**options)
    cookie = {"name": "sessionid", "value": sign_in(gateway, user), "url": gateway.url}
    await context.add_cookies([cookie])
    page = await context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    await page.goto(f"{gateway.url}/live/")
    return page


async def violations(page):
    await page.evaluate(AXE.read_text())
    # Colours on their way from one theme or state to the next are nobody's to read.
    await page.evaluate("for (const one of document.getAnimations()) { try { one.finish(); } catch { /* endless */ } }")
    found = await page.evaluate("axe.run()")
    return [(each["id"], each["nodes"][0]["target"]) for each in found["violations"]]


async def test_calls_are_seen_and_cancelled_and_a_lost_connection_is_told(make_gateway, fake, browser):
    expect.set_options(timeout=1000 * PATIENCE)
    fake.faults(path="/api/chat", model="llama3.2", infinite=True, tokens_per_second=20)
    gateway = make_gateway()
    gateway.make_backend(fake.url, slots=64)
    cast = Cast(gateway)
    key = gateway.make_key("<img src=x onerror=alert(1)>", cast.tenant, user=cast.alice)[1]
    await asyncio.to_thread(gateway.start)

    page = await page_in(browser, gateway, cast.alice)
    await expect(page.get_by_role("heading", name="No call is running")).to_be_visible()
    await expect(page.locator("#connection")).to_have_text("Live")
    async with stream(gateway, key) as (_, lines), stream(gateway, cast.keys["bob"]):
        await expect(page.locator("#calls tr")).to_have_count(2)
        first = page.locator("#calls tr").first
        await expect(first).to_contain_text("<img src=x onerror=alert(1)>")
        await expect(first).to_contain_text("Streaming")
        await expect(page.locator("#in-flight")).to_have_text("2")
        assert await page.locator("#backends").count() == 0

        button = first.get_by_role("button", name="Cancel llama3.2 of <img")
        await button.focus()
        for _ in range(2):  # pictures later it still has the focus
            await expect(first.locator("td").nth(1)).not_to_have_text(await first.locator("td").nth(1).inner_text())
        assert await button.evaluate("button => button === document.activeElement")
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Cancel this call?")
        await expect(dialog).to_be_visible()
        assert await violations(page) == []
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        await button.click()
        await dialog.get_by_role("button", name="Let it go on").click()
        await expect(page.locator("#calls tr")).to_have_count(2)
        await button.click()
        await dialog.get_by_role("button", name="Cancel the call").click()
        assert "cancelled this call" in (await last_line(lines))["error"]
        await expect(page.locator("#calls tr")).to_have_count(1)
        await expect(page.locator("#notices")).to_contain_text("has ended")
        assert page.problems == []

        for scheme in ("light", "dark"):
            staff = await page_in(browser, gateway, cast.root, color_scheme=scheme)
            await expect(staff.locator("#backends tr")).to_have_count(1)
            await expect(staff.locator("#backends tr")).to_contain_text("llama3.2:latest")
            assert await violations(staff) == []
            assert staff.problems == []
            await staff.context.close()

    gateway.stop()
    await expect(page.locator("#trouble")).to_contain_text("The connection is lost")
    await expect(page.locator("#connection")).to_have_text("Connection lost")
    await asyncio.to_thread(gateway.start)
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#trouble")).to_be_hidden()
    await page.context.clear_cookies()
    gateway.rows(type(cast.alice)).filter(pk=cast.alice.pk).update(is_active=False)
    await expect(page.get_by_role("link", name="Sign in again")).to_be_visible()
