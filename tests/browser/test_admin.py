"""The admin in a browser: alive without a reload, strict about scripts. How its pages look: test_every_page.py."""

import pytest
import pytest_asyncio
from playwright.async_api import expect

from proxy.fake_ollama.names import parse_name
from proxy.models import Backend, ModelJob
from tenants.models import ApiKey
from tests.browser.conftest import new_visitor

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(browser, demo_gateway):
    visitor = await new_visitor(browser, demo_gateway.url)
    await visitor.sign_in("admin", demo_gateway.password)
    return visitor


@pytest.fixture(scope="module")
def paths(demo_gateway):
    backend = demo_gateway.rows(Backend).get().pk
    return {"backend": f"/admin/proxy/backend/{backend}/change/", "models": f"/admin/proxy/backend/{backend}/models/"}


async def test_the_dashboard_keeps_itself_up_to_date(admin, demo_gateway):
    page = admin.page
    await admin.open("/admin/")
    await expect(page.get_by_role("heading", name="Backends")).to_be_visible()
    await expect(page.get_by_text("1 of 1")).to_be_visible(timeout=20_000)
    async with demo_gateway.client() as client:
        await client.post("/api/chat", json={"model": "llama3.2", "messages": []})
    # The worker tells of it within five seconds, the page asks every five.
    await expect(page.get_by_text("No key was sent.")).to_be_visible(timeout=40_000)


async def test_old_figures_are_marked_when_the_gateway_does_not_answer(admin):
    page = await admin.page.context.new_page()
    await page.clock.install()
    await page.goto(admin.url + "/admin/")
    await page.route("**/admin/now/", lambda route: route.abort())
    async with page.expect_event("requestfailed"):
        await page.clock.fast_forward("00:06")
    await expect(page.locator("[data-stale]")).not_to_be_attached()  # once may be a hiccup
    async with page.expect_event("requestfailed"):
        await page.clock.fast_forward("00:11")
    await expect(page.locator("[data-stale]")).to_be_attached()
    await page.unroute("**/admin/now/")
    await page.clock.fast_forward("00:21")
    await expect(page.locator("[data-stale]")).not_to_be_attached(timeout=30_000)
    await page.close()


async def test_a_backend_is_tested_by_a_button(admin, paths, shared_fake, screenshots):
    page = admin.page
    await admin.open(paths["backend"])
    await page.get_by_role("button", name="Test").click()
    await expect(page.get_by_text(f"is Ollama {shared_fake.version}")).to_be_visible()
    await page.screenshot(path=screenshots / "admin-test.png", full_page=True, caret="initial")
    assert await admin.breaches() == []


async def test_a_pull_shows_its_progress_and_survives_a_reload(admin, paths, shared_fake, demo_gateway, screenshots):
    page = admin.page
    shared_fake.pullable.add(parse_name("phi4").key)
    shared_fake.faults(path="/api/pull", model="phi4:latest", hang_after_chunks=3)
    await admin.open(paths["models"])
    await page.get_by_label("Name, as in the library of Ollama").fill("phi4")
    await page.get_by_role("button", name="Pull", exact=True).click()
    bar = page.get_by_role("progressbar", name="Pull phi4:latest")
    await expect(bar).to_have_attribute("value", "66", timeout=20_000)
    assert await admin.breaches() == []
    await page.screenshot(path=screenshots / "admin-pull.png", full_page=True, caret="initial")
    await page.reload()
    await expect(bar).to_have_attribute("value", "66")
    shared_fake.release()
    await expect(page.locator(".jobs li").first.get_by_text("done")).to_be_visible(timeout=20_000)
    # Without a reload: the page asks what is installed, and the gateway asked the backend at once.
    await expect(page.get_by_role("button", name="Load phi4:latest")).to_be_visible(timeout=40_000)
    shared_fake.clear_faults()
    assert demo_gateway.rows(ModelJob).get().state == "done"


async def test_a_pull_is_cancelled_by_a_button(admin, paths, shared_fake):
    page = admin.page
    shared_fake.pullable.add(parse_name("big").key)
    shared_fake.faults(path="/api/pull", model="big:latest", hang_after_chunks=2)
    await admin.open(paths["models"])
    await page.get_by_label("Name, as in the library of Ollama").fill("big")
    await page.get_by_role("button", name="Pull", exact=True).click()
    await page.get_by_role("button", name="Cancel Pull big:latest").click()
    await expect(page.locator(".jobs li").first.get_by_text("cancelled")).to_be_visible(timeout=20_000)
    shared_fake.release()
    shared_fake.clear_faults()


async def test_deleting_a_model_asks_first(admin, paths, screenshots):
    page = admin.page
    await admin.open(paths["models"])
    await page.get_by_role("button", name="Delete… nomic-embed-text:latest").click()
    await expect(page.get_by_text("No other backend has it: calls for it will get 404.")).to_be_visible()
    await page.screenshot(path=screenshots / "admin-delete-model.png", full_page=True, caret="initial")
    assert await admin.breaches() == []
    await page.get_by_role("link", name="No, take me back").click()
    await expect(page.get_by_role("button", name="Delete… nomic-embed-text:latest")).to_be_visible()


async def test_a_new_key_is_shown_once_and_then_revoked(admin, demo_gateway, screenshots):
    page = admin.page
    await admin.open("/admin/tenants/apikey/add/")
    await page.get_by_label("Name:").fill("made in a browser")
    await page.get_by_role("combobox", name="Tenant").click()
    await page.get_by_role("option", name="demo").click()
    await page.get_by_role("button", name="Save", exact=True).click()
    secret = await page.locator("#clear-text").inner_text()
    assert secret.startswith("ogw_")
    assert await admin.breaches() == []
    await page.screenshot(path=screenshots / "admin-secret.png", full_page=True, caret="initial")
    await page.reload()
    await expect(page.get_by_text("was shown already")).to_be_visible()
    assert secret not in await page.content()
    await page.go_back()
    assert secret not in await page.content()

    row = demo_gateway.rows(ApiKey).get(name="made in a browser")
    await admin.open("/admin/tenants/apikey/")
    await page.locator(f'input[name="_selected_action"][value="{row.pk}"]').check()
    await page.get_by_label("Action:").select_option("revoke")
    await page.get_by_role("button", name="Go").click()
    await expect(page.get_by_role("heading", name="Revoke these keys for good?")).to_be_visible()
    await page.screenshot(path=screenshots / "admin-revoke.png", full_page=True, caret="initial")
    assert await admin.breaches() == []
    assert demo_gateway.rows(ApiKey).get(pk=row.pk).state == "active"
    await page.get_by_role("button", name="Revoke").click()
    await expect(page.get_by_text("Revoked: 1.")).to_be_visible()
    assert demo_gateway.rows(ApiKey).get(pk=row.pk).state == "revoked"
