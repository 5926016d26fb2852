"""The playground as people have it: in a browser, by keyboard and mouse, on a phone, in light and dark."""

import asyncio
import json
import shlex

import pytest
from playwright.async_api import async_playwright, expect

from tests.live.signed_in import make_person, sign_in
from tests.live.test_live_page import PATIENCE
from tests.live.test_live_page_in_a_browser import violations

PHONE = {"width": 390, "height": 844}


@pytest.fixture
async def browser():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        await browser.close()


async def page_in(browser, gateway, user, **options):
    context = await browser.new_context(**options)
    await context.add_cookies([{"name": "sessionid", "value": sign_in(gateway, user), "url": gateway.url}])
    page = await context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    await page.goto(f"{gateway.url}/playground/")
    return page


async def test_a_conversation_by_keyboard_with_stop_and_curl(make_gateway, fake, browser):
    expect.set_options(timeout=1000 * PATIENCE)
    gateway = make_gateway()
    gateway.make_backend(fake.url, slots=8)
    alice = make_person(gateway, "alice", acme="owner")
    gateway.make_key("everything", user=alice)
    gateway.make_key("only <b>llama</b>", user=alice, models_allowed=["llama3.2"])
    await asyncio.to_thread(gateway.start)
    _, key = gateway.make_key("to look")
    await gateway.until_it_lists("llama3.2", key=key)

    page = await page_in(browser, gateway, alice, viewport=PHONE, color_scheme="dark")
    async with asyncio.timeout(PATIENCE):  # what the backends have is reported within a second or two
        while not await page.locator("#model option").count():
            await page.reload()
    await expect(page.locator("#connection")).to_have_text("Ready")
    assert await page.locator("#model option").all_inner_texts() == ["llama3.2:latest"]

    prompt, send, stop = (
        page.get_by_label("Your message"),
        *(page.get_by_role("button", name=name, exact=True) for name in ("Send", "Stop")),
    )
    await prompt.fill("It's a <b>question</b>")
    command = shlex.split((await page.locator("#curl").inner_text()).replace("\\\n", " "))
    body = json.loads(command[command.index("-d") + 1])
    assert body == {"model": "llama3.2:latest", "messages": [{"role": "user", "content": "It's a <b>question</b>"}]}
    assert command[1] == f"http://localhost:{gateway.port}/api/chat"
    assert command[3] == "Authorization: Bearer $OLLAMA_GATEWAY_KEY"

    await prompt.press("Shift+Enter")
    await expect(prompt).to_have_value("It's a <b>question</b>\n")
    await prompt.press("Enter")
    turns = page.locator(".turn")
    await expect(turns).to_have_count(2)
    await expect(turns.nth(0)).to_contain_text("It's a <b>question</b>")
    await expect(turns.nth(1)).to_contain_text("tok1 tok2")
    await expect(turns.nth(1)).to_contain_text("tokens")
    link = turns.nth(1).get_by_role("link", name="The request")
    await expect(link).to_be_visible()
    await expect(stop).to_be_disabled()

    fake.faults(path="/api/chat", infinite=True, tokens_per_second=40, times=1)
    await page.get_by_label("Temperature").fill("0.3")
    await prompt.fill("Go on for ever")
    await send.click()
    await expect(turns.nth(3)).to_contain_text("tok5")
    await expect(send).to_be_disabled()
    await expect(page.locator("#conversation")).to_have_attribute("aria-busy", "true")
    (running,) = [call for call in fake.calls if call.path == "/api/chat" and not call.complete]
    assert [message["role"] for message in running.json["messages"]] == ["user", "assistant", "user"]
    assert running.json["options"]["temperature"] == 0.3
    assert await violations(page) == []
    await prompt.press("Escape")
    await expect(turns.nth(3)).to_contain_text("Stopped.")
    async with asyncio.timeout(PATIENCE):
        while not running.disconnected:
            await asyncio.sleep(0.02)
    await expect(send).to_be_enabled()
    fake.clear_faults()

    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(wider) <= 0
    await page.emulate_media(color_scheme="light")
    assert await violations(page) == []
    href = await link.get_attribute("href")
    await page.get_by_role("button", name="New conversation").click()
    await expect(turns).to_have_count(0)
    assert page.problems == []
    await page.goto(gateway.url + href)
    await expect(page.locator("body")).to_contain_text("ollama-gateway-playground")


async def test_what_is_refused_is_said_and_the_question_stays(make_gateway, fake, browser):
    expect.set_options(timeout=1000 * PATIENCE)
    gateway = make_gateway()
    gateway.make_backend(fake.url, slots=8)
    alice = make_person(gateway, "alice", acme="owner")
    await asyncio.to_thread(gateway.start)
    page = await page_in(browser, gateway, alice)
    await expect(page.get_by_role("heading", name="You have no key that can be used here")).to_be_visible()
    row, key = gateway.make_key("mine", user=alice)
    await gateway.until_it_lists("llama3.2", key=key)
    async with asyncio.timeout(PATIENCE):
        while not await page.locator("#model option").count():
            await page.reload()
    await expect(page.locator("#connection")).to_have_text("Ready")
    gateway.rows(type(row)).filter(pk=row.pk).update(may_infer=False)
    prompt = page.get_by_label("Your message")
    async with asyncio.timeout(PATIENCE):
        while not await page.locator(".bad-text").count():
            await prompt.fill("May I?")
            await prompt.press("Enter")
            await expect(page.get_by_role("button", name="Stop")).to_be_disabled()
            await asyncio.sleep(0.2)
    await expect(page.locator(".bad-text")).to_contain_text("may not generate")
    await expect(prompt).to_have_value("May I?")
    await page.context.clear_cookies()
    gateway.stop()
    await expect(page.locator("#connection")).to_have_text("Connection lost")
