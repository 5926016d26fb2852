"""The live page of a busy gateway: 200 calls begin and end in a second, and the page is one to work with."""

import asyncio

import pytest
import pytest_asyncio
from playwright.async_api import expect

from benchmarks import load
from tests.browser.conftest import new_visitor
from tests.live.signed_in import make_person, sign_in
from tests.live.test_live_page import stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE, SECONDS = 200, 6
# A person notices 200 ms, which the printed figures are to be judged by; a machine that does other things takes more.
CEILING_MS = 2000
MOST_ELEMENTS = 10_000
WATCH = """() => {
    window.delays = [];
    let due = performance.now() + 20;
    window.watch = setInterval(() => {
        const now = performance.now();
        window.delays.push(Math.max(0, now - due));
        due = now + 20;
    }, 20);
    window.most = 0;
    new MutationObserver(() => {
        window.most = Math.max(window.most, document.getElementsByTagName("*").length);
    }).observe(document.body, { childList: true, subtree: true });
}"""
# From the click to the next picture on the screen after its dialog is open.
CLICK = """() => new Promise((done) => {
    const button = document.querySelector("#calls button:not([hidden])");
    const began = performance.now();
    setTimeout(() => {
        button.click();
        requestAnimationFrame(() => requestAnimationFrame(() => {
            const open = document.getElementById("confirm").open;
            const took = performance.now() - began;
            document.getElementById("confirm").close("keep");
            done(open ? took : -1);
        }));
    });
})"""


@pytest_asyncio.fixture(loop_scope="module")
async def busy(make_shared_gateway, shared_fake):
    """(gateway, key), with calls that go on for ever; those of another model are answered at once."""
    shared_fake.scheduler.slots = 1000
    shared_fake.faults(path="/api/chat", model="qwen3:8b", infinite=True, tokens_per_second=5)
    gateway = make_shared_gateway()
    gateway.make_backend(shared_fake.url, slots=1000)
    _, key = gateway.make_key()
    await asyncio.to_thread(gateway.start)
    await gateway.until_it_lists("llama3.2", "qwen3:8b", key=key)
    return gateway, key


async def test_200_live_events_a_second_leave_the_page_usable(browser, busy):
    gateway, key = busy
    root = make_person(gateway, "root")
    gateway.rows(type(root)).filter(pk=root.pk).update(is_staff=True, is_superuser=True)
    visitor = await new_visitor(browser, gateway.url)
    page = visitor.page
    cookie = {"name": "sessionid", "value": sign_in(gateway, root), "url": gateway.url}
    await page.context.add_cookies([cookie])
    streams = [stream(gateway, key, model="qwen3:8b") for _ in range(30)]
    for each in streams:
        await each.__aenter__()
    try:
        await visitor.open("/live/")
        await expect(page.locator("#calls tr")).to_have_count(30)
        await page.evaluate(WATCH)
        body = b'{"model":"llama3.2","stream":false,"messages":[],"options":{"num_predict":2}}'
        driving = asyncio.create_task(
            load.run(gateway.url, "/api/chat", body, key, requests=RATE * SECONDS, connections=16, rate=RATE)
        )
        loop = asyncio.get_running_loop()
        since, clicks = loop.time(), []
        while not driving.done():
            clicks.append(await page.evaluate(CLICK))
            await asyncio.wait({driving}, timeout=0.5)
        await driving
        rate = RATE * SECONDS / (loop.time() - since)
        delays = sorted(await page.evaluate("() => { clearInterval(window.watch); return window.delays; }"))
        most = await page.evaluate("window.most")
        median, late = delays[len(delays) // 2], delays[int(len(delays) * 0.99)]
        print(
            f"\n  {rate:.0f} calls/s; event loop late by {median:.1f} ms (p99 {late:.0f}, most {delays[-1]:.0f}); "
            f"a click in {sorted(clicks)[len(clicks) // 2]:.0f} ms (most {max(clicks):.0f}); {most} elements",
            end=" ",
        )
        assert min(clicks) >= 0, "a click opened no dialog"
        assert max(clicks) < CEILING_MS, clicks
        assert late < CEILING_MS
        assert most < MOST_ELEMENTS
        assert visitor.problems == []
        # They have ended, and nothing of them stays.
        await expect(page.locator("#calls tr")).to_have_count(30)
    finally:
        for each in streams:
            await each.__aexit__(None, None, None)
