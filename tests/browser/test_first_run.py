"""The first quarter of an hour, in a browser: the link, the first answer, its usage, and a call that is cancelled."""

import asyncio
import json
import re
import subprocess
import sys
import time

import pytest
from playwright.async_api import expect

from proxy.models import Backend, BackendReport
from tenants.snippets import snippets
from tests.browser.conftest import new_visitor
from tests.factories import PASSWORD

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def run(*command):
    """The output of a program, which must end well."""
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_from_the_link_to_the_first_answer_its_usage_and_a_call_that_is_cancelled(
    browser, bare_gateway, shared_fake, screenshots
):
    visitor = await new_visitor(browser, bare_gateway.url)
    page = visitor.page
    link = re.search(r"http\S+/setup/\S+/", bare_gateway.log())[0]
    assert link.startswith(f"http://localhost:{bare_gateway.port}/")

    await visitor.open(link)
    await page.screenshot(path=screenshots / "setup-account.png", full_page=True)
    assert await visitor.breaches() == []
    await page.get_by_label("Username").fill("ada")
    await page.get_by_label("Password", exact=True).fill(PASSWORD)
    await page.get_by_label("Password again").fill(PASSWORD)
    await page.get_by_role("button", name="Make the account").click()

    await expect(page.get_by_role("heading", name="Your Ollama server")).to_be_visible()
    await page.get_by_label("Address").fill(shared_fake.url)
    answers = page.get_by_text(f"Ollama {shared_fake.version} answers, with 3 models")
    for _ in range(5):  # on a busy machine its two seconds may not be enough
        await page.get_by_role("button", name="Test").click()
        await page.wait_for_load_state()
        if await answers.count():
            break
    await expect(answers).to_be_visible()
    await page.screenshot(path=screenshots / "setup-backend.png", full_page=True)
    assert await visitor.breaches() == []
    await page.get_by_role("button", name="Save and go on").click()

    await page.get_by_label("Name").fill("my first key")
    await page.get_by_role("button", name="Make the key").click()
    await expect(page.get_by_text("Waiting for the first call")).to_be_visible()
    key = await page.locator("#clear-text").inner_text()
    assert key.startswith("ogw_")
    assert key not in page.url

    text = await page.locator("pre code").nth(1).inner_text()
    assert '"model": "llama3.2' in text
    await known(bare_gateway, key)
    answer = await run("sh", "-c", text)
    assert '"done":true' in answer.replace(" ", "")
    await expect(page.get_by_role("heading", name="Answer received")).to_be_visible()
    await expect(page.locator("[data-show=answer_tokens]")).not_to_have_text("")
    await page.screenshot(path=screenshots / "setup-answer.png", full_page=True)
    assert await visitor.breaches() == []

    await page.get_by_role("link", name="To the home page").click()
    await expect(page.get_by_role("heading", name="Today")).to_be_visible()
    await expect(page.locator(".stat").filter(has_text="Calls").first).to_contain_text("1")
    await page.get_by_role("navigation").get_by_role("link", name="Usage").first.click()
    await expect(page.get_by_role("heading", name="Usage").first).to_be_visible()
    await page.get_by_role("main").get_by_role("link", name="Model", exact=True).click()
    await expect(page.get_by_role("main").get_by_role("rowheader", name="llama3.2")).to_be_visible()
    await expect(page.get_by_role("main")).to_contain_text("my first key")

    await cancel_on_the_live_page(page, bare_gateway, shared_fake, key)
    assert await visitor.breaches() == []
    assert visitor.problems == []

    stranger = await new_visitor(browser, bare_gateway.url)
    assert await stranger.open(link) == 404
    assert bare_gateway.log().count(link) == 1
    assert key not in bare_gateway.log()


async def cancel_on_the_live_page(page, gateway, fake, key):
    """A stream that goes on for ever is seen, cancelled by its button, and ends at the client and the backend."""
    fake.faults(path="/api/chat", model="llama3.2", infinite=True, tokens_per_second=20)
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "Tell me everything"}]}
    await page.get_by_role("navigation").get_by_role("link", name="Live").first.click()
    await expect(page.get_by_role("heading", name="No call is running")).to_be_visible()
    async with gateway.client(key) as client, client.stream("POST", "/api/chat", json=body) as answer:
        lines = answer.aiter_lines()
        assert "message" in json.loads(await anext(lines))
        row = page.locator("#calls tr")
        await expect(row).to_contain_text("my first key")
        await expect(row).to_contain_text("Streaming")
        await row.get_by_role("button", name="Cancel llama3.2").click()
        dialog = page.get_by_role("dialog", name="Cancel this call?")
        await dialog.get_by_role("button", name="Cancel the call").click()
        async with asyncio.timeout(30):
            last = [line async for line in lines][-1]
        assert "cancelled this call" in json.loads(last)["error"]
    await expect(page.get_by_role("heading", name="No call is running")).to_be_visible()
    call_id = answer.headers["x-request-id"]
    (seen,) = [call for call in fake.calls if call.header("x-request-id") == call_id]
    async with asyncio.timeout(30):
        while not seen.disconnected:
            await asyncio.sleep(0.05)
    assert (await gateway.record(call_id, 30)).outcome == "cancelled"
    fake.clear_faults()


async def served(gateway, fake):
    """Returns when the gateway has a backend that its probes have seen."""
    gateway.rows(Backend).update_or_create(name="default", defaults={"url": fake.url, "slots": 8})
    deadline = time.monotonic() + 30
    while not gateway.rows(BackendReport).current().model_names():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def known(gateway, key):
    """Returns when the gateway has heard of a new key."""
    async with gateway.client(key) as client, asyncio.timeout(30):
        while (await client.get("/api/version")).status_code != 200:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("slug", ["curl-ollama", "curl-openai", "curl-anthropic", "python-ollama"])
async def test_printed_examples_work_as_they_are(bare_gateway, shared_fake, slug):
    row, key = bare_gateway.make_key(slug)
    await served(bare_gateway, shared_fake)
    await known(bare_gateway, key)
    snippet = snippets(bare_gateway.url, key, "llama3.2:latest")[slug]
    program = ["sh", "-c"] if snippet.language == "sh" else [sys.executable, "-c"]
    output = await run(*program, snippet.text)
    assert "error" not in output.lower()
    (record,) = await bare_gateway.wait_for_records(1, api_key_id=row.pk)
    assert (record.outcome, record.status) == ("ok", 200)
    assert output.strip()
