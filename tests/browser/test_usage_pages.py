"""The controls of the pages of usage, requests and models, used as people use them."""

import csv
import json
import os
import re
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from django.utils import timezone
from playwright.async_api import expect

from tests.browser.conftest import new_visitor
from usage.models import UsageRecord

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def visitor(browser, demo_gateway):
    """The administrator, who owns a tenant as well."""
    found = await new_visitor(browser, demo_gateway.url)
    await found.sign_in("admin", demo_gateway.password)
    yield found
    # Nothing that any test has done broke the policy or a script.
    assert found.problems == []


def sums(page):
    return page.get_by_role("region", name="Sums")


async def test_ranges_groups_and_measures_are_chosen_and_stay_in_the_address(visitor):
    page = visitor.page
    await visitor.open("/usage/")
    await page.get_by_role("navigation", name="Range").get_by_role("link", name="7 days").click()
    await page.get_by_role("navigation", name="Group by").get_by_role("link", name="Model").click()
    await page.get_by_label("Measure").select_option("Cost")
    await page.get_by_label("Chart by").select_option("Hour")
    await page.get_by_role("button", name="Show").click()
    await expect(page.get_by_role("heading", name="Cost, EUR, per hour")).to_be_visible()
    for name in ("7 days", "Model"):
        await expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute("aria-current", "true")
    for part in ("range=7d", "by=model", "measure=cost", "per=hour"):
        assert part in page.url
    before = await sums(page).inner_text()
    await page.reload()
    assert await sums(page).inner_text() == before
    await page.get_by_text("The same as a table").click()
    assert await page.get_by_role("region", name="Cost per hour").get_by_role("row").count() == 1 + 7 * 24
    assert await page.locator("svg.chart path").count() == await sums(page).get_by_role("row").count() - 2
    assert await visitor.breaches() == []


async def test_every_group_and_preset_can_be_pressed(visitor):
    page = visitor.page
    await visitor.open("/usage/?range=7d")
    for name in ("Hour", "Day", "Month", "Model", "Key", "User", "Backend", "End user", "Tenant"):
        await page.get_by_role("navigation", name="Group by").get_by_role("link", name=name, exact=True).click()
        await expect(page.get_by_role("heading", name=f"By {name.lower()}")).to_be_visible()
    for name in ("Today", "Yesterday", "30 days", "90 days", "This month", "Last month", "This year"):
        await page.get_by_role("navigation", name="Range").get_by_role("link", name=name, exact=True).click()
        await expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute("aria-current", "true")


async def test_dates_and_filters_narrow_it_down_and_are_taken_away_again(visitor):
    page = visitor.page
    await visitor.open("/usage/?by=model")
    today = timezone.now().date()
    await page.get_by_label("From").fill(str(today - timedelta(days=4)))
    await page.get_by_label("To, this day included").fill(str(today))
    await page.get_by_label("Model", exact=True).fill("qwen3:latest")
    await page.get_by_label("Tenant").select_option("research")
    await page.get_by_role("button", name="Show").click()
    await expect(page.get_by_text("Before: the 5 days from")).to_be_visible()
    rows = sums(page).locator("tbody tr")
    await expect(rows).to_have_count(1)
    await expect(rows.first).to_contain_text("qwen3:latest")
    await page.get_by_role("link", name="Without filters").click()
    assert await sums(page).locator("tbody tr").count() > 1
    await page.get_by_label("Model", exact=True).fill("none:1b")
    await page.get_by_role("button", name="Show").click()
    await expect(page.get_by_role("heading", name="No requests in this range with these filters")).to_be_visible()


async def test_a_row_leads_to_itself_and_its_number_to_the_requests(visitor):
    page = visitor.page
    await visitor.open("/usage/?range=7d&by=key")
    first = sums(page).locator("tbody tr").first
    number = (await first.locator("td").first.inner_text()).strip()
    await first.get_by_role("link").nth(1).click()
    await expect(page.get_by_role("heading", name="Requests")).to_be_visible()
    shown = await page.locator("#requests tbody tr").count()
    assert shown == min(50, int(number.replace(",", "")))
    await page.go_back()
    await sums(page).locator("tbody tr").first.get_by_role("link").first.click()
    await expect(sums(page).locator("tfoot")).to_contain_text(number)


async def downloaded(page, name):
    async with page.expect_download() as waiting:
        await page.get_by_role("link", name=name, exact=True).click()
    return Path(await (await waiting.value).path()).read_text()


async def test_files_are_downloaded_with_what_is_shown(visitor):
    page = visitor.page
    await visitor.open("/usage/?range=7d&by=model")
    shown = [await cell.inner_text() for cell in await sums(page).locator("tbody th").all()]
    in_csv = list(csv.DictReader((await downloaded(page, "CSV")).splitlines()))
    in_json = json.loads(await downloaded(page, "JSON"))
    assert shown == [row["model"] for row in in_csv] == [row["model"] for row in in_json]
    await visitor.open("/requests/?outcome=failures&of=all")
    found = list(csv.DictReader((await downloaded(page, "CSV")).splitlines()))
    assert found
    assert "ok" not in {row["outcome"] for row in found}


async def test_the_list_is_filtered_paged_and_searched(visitor):
    page = visitor.page
    await visitor.open("/requests/")
    rows = page.locator("#requests tbody tr")
    ids = [await row.get_attribute("data-id") for row in await rows.all()]
    await page.get_by_role("link", name="Older").click()
    await expect(page.get_by_role("heading", name="Further on")).to_be_visible()
    assert set(ids).isdisjoint([await row.get_attribute("data-id") for row in await rows.all()])
    await page.get_by_role("link", name="Newer").click()
    await expect(rows.first).to_have_attribute("data-id", ids[0])
    await page.get_by_role("link", name="The newest").click()
    await page.get_by_label("Outcome").select_option("all that failed")
    await page.get_by_label("Status").fill("5xx")
    await page.get_by_label("Slower than, ms").fill("10")
    await page.get_by_role("button", name="Show").click()
    assert {(await badge.inner_text()) for badge in await rows.locator(".badge").all()} <= {"timeout", "failed"}
    await page.get_by_role("link", name="Without filters").click()
    await page.get_by_label("Request id", exact=True).fill(ids[7])
    await page.get_by_role("button", name="Show").click()
    await expect(rows).to_have_count(1)
    await rows.get_by_role("link").click()
    await expect(page.locator("#request-id")).to_have_text(ids[7])


# How often a page has asked for something by script.
COUNTING = "window.asked = 0; const real = fetch; window.fetch = (...given) => { asked += 1; return real(...given); };"
# Says to the page that nobody sees its tab, or somebody does; and how often it has asked by then.
HIDING = """hidden => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
    return asked;
}"""


def another(gateway, **fields):
    """A call that has just ended, as the ledger would store it."""
    record = gateway.rows(UsageRecord).filter(outcome="ok").first()
    for name, value in {"started_at": timezone.now(), **fields}.items():
        setattr(record, name, value)
    record.pk = uuid4()
    record.save(force_insert=True)
    return record


async def test_new_requests_appear_while_it_is_followed_and_nothing_is_asked_in_a_hidden_tab(visitor, demo_gateway):
    page = visitor.page
    await page.add_init_script(COUNTING)
    await page.clock.install()
    await visitor.open("/requests/?of=all")
    button, rows = page.get_by_role("button", name="Follow"), page.locator("#requests tbody tr")
    await expect(button).to_have_attribute("aria-pressed", "false")
    await page.clock.run_for(10_000)
    assert await page.evaluate("asked") == 0

    async with page.expect_response(re.compile("/requests/rows/")):
        await button.click()
        await page.clock.run_for(10)
    await expect(button).to_have_attribute("aria-pressed", "true")
    new = another(demo_gateway, model="followed:1b")
    await page.clock.run_for(3_000)
    await expect(rows.first).to_contain_text("followed:1b")
    await expect(rows.first).to_have_attribute("data-id", str(new.pk))
    await expect(page.locator("#follow-state")).to_have_text("1 new")
    assert await visitor.breaches() == []

    # One that began long ago and ended now is put where it belongs; who reads the first row by keyboard stays there.
    await rows.first.get_by_role("link").focus()
    late = another(demo_gateway, started_at=new.started_at - timedelta(milliseconds=1))
    await page.clock.run_for(3_000)
    await expect(rows.nth(1)).to_have_attribute("data-id", str(late.pk))
    assert str(new.pk) in await page.evaluate("document.activeElement.href")

    count = await page.evaluate(HIDING, True)
    await page.clock.run_for(60_000)
    assert await page.evaluate("asked") == count
    async with page.expect_response(re.compile("/requests/rows/")):
        await page.evaluate(HIDING, False)
        await page.clock.run_for(10)

    await button.click()
    await expect(button).to_have_attribute("aria-pressed", "false")
    count = await page.evaluate("asked")
    await page.clock.run_for(60_000)
    assert await page.evaluate("asked") == count


async def test_one_request_is_copied_and_leads_to_those_like_it(visitor, demo_gateway):
    page = visitor.page
    record = another(demo_gateway, client_request_id="from-my-client", attempts=2)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await visitor.open(f"/requests/{record.pk}/")
    for name in ("How it ended", "Where the time went", "What it cost", "Where it was answered", "Who asked, and how"):
        await expect(page.get_by_role("heading", name=name)).to_be_visible()
    assert await page.locator("svg.waterfall rect").count() == 6
    await page.get_by_role("button", name="Copy the id").click()
    assert await page.evaluate("navigator.clipboard.readText()") == str(record.pk)
    await page.get_by_role("link", name="from-my-client").click()
    await expect(page.locator("#requests tbody tr")).to_have_count(1)
    assert "client_id=from-my-client" in page.url


async def test_people_who_administer_nothing_see_the_same_of_their_own(browser, demo_gateway):
    ben = await new_visitor(browser, demo_gateway.url, width=390, theme="dark")
    await ben.sign_in("ben", demo_gateway.password)
    for link, heading in (("Usage", "Usage"), ("Requests", "Requests"), ("Models", "Models"), ("Home", "My own keys")):
        await ben.page.get_by_role("navigation", name="Main").get_by_role("link", name=link, exact=True).click()
        await expect(ben.page.get_by_role("heading", level=1)).to_have_text(heading)
        assert await ben.overflow() == 0
        assert "All tenants" not in await ben.page.content()
    assert ben.problems == []
    await ben.page.context.close()


async def test_without_script_there_is_no_button_that_does_nothing(browser, demo_gateway, visitor):
    context = await browser.new_context(java_script_enabled=False)
    await context.add_cookies(await visitor.page.context.cookies())
    page = await context.new_page()
    await page.goto(f"{demo_gateway.url}/requests/")
    await expect(page.locator("#requests tbody tr").first).to_be_visible()
    await expect(page.locator("#follow")).to_be_hidden()
    await context.close()


# Fields of filters that stand beyond the card they are in, in pixels.
BEYOND = """() => [...document.querySelectorAll(".filters")].flatMap((filters) => {
    const edge = filters.getBoundingClientRect().right;
    return [...filters.querySelectorAll("input, select")]
        .map((field) => [field.name, Math.round(field.getBoundingClientRect().right - edge)])
        .filter(([name, beyond]) => beyond > 0);
})"""


@pytest.mark.parametrize("width", [320, 375])
async def test_filters_fit_a_small_phone(visitor, screenshots, width):
    await visitor.page.set_viewport_size({"width": width, "height": 800})
    for path in ("/usage/", "/changes/", "/requests/"):
        await visitor.open(path)
        if os.getenv("SCREENSHOTS"):
            await visitor.page.screenshot(
                path=screenshots / f"phone-{width}{path.replace('/', '-')}.png", caret="initial"
            )
        assert await visitor.overflow() <= 0, path
        assert await visitor.page.evaluate(BEYOND) == [], path
    await visitor.page.set_viewport_size({"width": 1280, "height": 900})


async def test_the_menu_is_one_row_on_every_page_of_an_administrator(visitor, screenshots):
    heights = {}
    for path in ("/", "/usage/", "/requests/", "/playground/", "/people/"):
        await visitor.open(path)
        box = await visitor.page.locator(".topbar").bounding_box()
        heights[path] = round(box["height"])
        if os.getenv("SCREENSHOTS"):
            await visitor.page.screenshot(path=screenshots / f"menu{path.replace('/', '-')}.png", caret="initial")
    assert max(heights.values()) < 70, heights
