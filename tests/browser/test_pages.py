"""The users' pages in a browser: what they look like in states that the walk (test_every_page.py) does not meet."""

from datetime import timedelta

import pytest
import pytest_asyncio
from django.utils import timezone
from playwright.async_api import expect

from proxy.models import Delivery, LimitAlert, Webhook
from tenants.models import ApiKey, Limit
from tests.browser.conftest import WIDTHS, new_visitor
from usage.models import UsageRecord

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOOKS = (("wide", "light"), ("wide", "dark"), ("narrow", "light"))

PAGES = {
    "home-of-own-keys": "/?of=mine",
    "usage-90": "/usage/?range=90d&by=model",
    "usage-speed": "/usage/?range=7d&by=backend&measure=tokens_per_second",
    "usage-nothing": "/usage/?model=none:1",
    "usage-mistaken": "/usage/?range=decade",
    "requests-nothing": "/requests/?client_id=none",
    "request": "/requests/{failed}/",
    "request-answered": "/requests/{answered}/",
    "keys-revoked": "/keys/?revoked",
    "limit-new": "/limits/new/{tenant}/?key={app}",
    "webhook": "/limits/webhooks/{webhook}/",
    "changes-none": "/changes/?action=deleted&until=2001-01-01",
    "not-found": "/nothing/here/",
}


@pytest.fixture(scope="module")
def prefixes(demo_gateway):
    """What the addresses of pages are made of: prefixes of keys, numbers of rows."""
    limit = demo_gateway.rows(Limit).filter(managed_by__name="demo").first()
    webhook = demo_gateway.rows(Webhook).create(tenant=limit.managed_by, url="https://hooks.example.com/demo")
    alert = demo_gateway.rows(LimitAlert).create(
        limit=limit, tenant=limit.managed_by, counted_for="x", window_start=timezone.now(), window_end=timezone.now(),
        amount=1, threshold=80, body={"limit": {"text": "500,000 tokens per day for the user ben"}},
    )  # fmt: skip
    for state, outcome in (
        ("sent", "It answered 204."),
        ("pending", "It answered 500."),
        ("failed", "It answered 410."),
    ):
        demo_gateway.rows(Delivery).create(
            alert=alert, webhook=webhook, state=state, outcome=outcome, attempts=1,
            due_at=timezone.now() + timedelta(days=1),
        )  # fmt: skip
    records = demo_gateway.rows(UsageRecord)
    answered = records.filter(outcome="ok", cost_nano__gt=0).first()
    numbers = {"failed": records.exclude(outcome="ok").first().pk, "answered": answered.pk}
    numbers |= {"limit": limit.pk, "tenant": limit.managed_by_id, "webhook": webhook.pk}
    return numbers | {key.name.replace(" ", "_"): key.prefix for key in demo_gateway.rows(ApiKey).all()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def windows(browser, demo_gateway):
    """(width, theme) → a window in which the administrator is signed in."""
    found = {}
    first = await new_visitor(browser, demo_gateway.url)
    await first.sign_in("admin", demo_gateway.password)
    cookies = await first.page.context.cookies()
    for width, theme in LOOKS:
        found[width, theme] = visitor = await new_visitor(browser, demo_gateway.url, width=WIDTHS[width], theme=theme)
        await visitor.page.context.add_cookies(cookies)
    return found


async def judge(visitor, path, status, picture):
    visitor.problems.clear()
    assert await visitor.open(path) == status
    await visitor.page.screenshot(path=picture, full_page=True)
    assert await visitor.overflow() == 0
    assert await visitor.breaches() == []
    assert visitor.problems == []
    assert await visitor.page.title() not in ("", "Ollama Gateway")
    assert await visitor.page.locator("h1").count() == 1


@pytest.mark.parametrize("name", PAGES)
async def test_pages_are_accessible_at_every_width_in_every_theme(windows, prefixes, screenshots, name):
    path = PAGES[name].format(**prefixes)
    for (width, theme), visitor in windows.items():
        status = {"not-found": 404, "usage-mistaken": 400}.get(name, 200)
        await judge(visitor, path, status, screenshots / f"{name}-{width}-{theme}.png")


async def test_a_key_is_made_copied_and_never_seen_again(browser, demo_gateway, screenshots):
    visitor = await new_visitor(browser, demo_gateway.url)
    page = visitor.page
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await visitor.sign_in("ben", demo_gateway.password)
    await visitor.open("/keys/new/")
    await page.get_by_label("Name", exact=True).fill("from the browser")
    await page.get_by_role("button", name="Make the key").click()
    key = await page.locator("#clear-text").inner_text()
    await page.screenshot(path=screenshots / "key-secret.png", full_page=True)
    assert await visitor.breaches() == []
    await page.get_by_role("button", name="Copy").first.click()
    assert await page.evaluate("navigator.clipboard.readText()") == key
    await page.reload()
    assert key not in await page.content()
    await visitor.open("/keys/")
    await page.go_back()
    assert key not in await page.content()
    assert visitor.problems == []
    assert key not in demo_gateway.log()


async def test_tabs_and_menus_work_by_keyboard(windows, prefixes):
    visitor = windows["wide", "light"]
    page = visitor.page
    await visitor.open(f"/keys/{prefixes['app']}/")
    first = page.get_by_role("tab").first
    await first.focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_role("tab", selected=True)).to_have_text("curl, OpenAI")
    await expect(page.get_by_role("tabpanel")).to_contain_text("/v1/chat/completions")
    await page.keyboard.press("End")
    await expect(page.get_by_role("tab", selected=True)).to_have_text("Claude Code")
    menu = page.locator("details.menu")
    await menu.locator("summary").focus()
    await page.keyboard.press("Enter")
    await expect(menu).to_have_attribute("open", "")
    await page.keyboard.press("Escape")
    await expect(menu).not_to_have_attribute("open", "")
    await visitor.open("/")
    await page.keyboard.press("Tab")
    await expect(page.locator(":focus")).to_have_text("Skip to the content")


async def test_the_theme_that_was_chosen_stays(browser, demo_gateway):
    visitor = await new_visitor(browser, demo_gateway.url)
    page = visitor.page
    await visitor.open("/account/login/")
    background = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(background)
    toggle = page.get_by_role("button", name="Dark theme")
    await toggle.click()
    await expect(toggle).to_have_attribute("aria-pressed", "true")
    dark = await page.evaluate(background)
    assert dark != light
    await page.reload()
    assert await page.evaluate(background) == dark


async def test_without_script_everything_is_there(browser, demo_gateway, prefixes):
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(f"{demo_gateway.url}/account/login/")
    await page.get_by_label("User name or e-mail address").fill("ben")
    await page.get_by_label("Password", exact=True).fill(demo_gateway.password)
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await page.goto(f"{demo_gateway.url}/keys/{prefixes['notebook']}/")
    await expect(page.get_by_role("heading", name="Claude Code")).to_be_visible()
    await expect(page.get_by_text("ANTHROPIC_BASE_URL")).to_be_visible()
    await context.close()


async def test_an_authenticator_app_and_a_passkey_are_set_up(browser, demo_gateway, screenshots):
    """With the browser's own virtual authenticator: the whole way through its scripts, under our policy."""
    # Passkeys belong to a domain, which an address is not.
    url = demo_gateway.url.replace("127.0.0.1", "localhost")
    visitor = await new_visitor(browser, url)
    page = visitor.page
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("WebAuthn.enable")
    await devtools.send("WebAuthn.addVirtualAuthenticator", {"options": {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
        "isUserVerified": True, "automaticPresenceSimulation": True,
    }})  # fmt: skip
    await visitor.sign_in("clara", demo_gateway.password)
    await visitor.open("/account/2fa/totp/activate/")
    await page.get_by_label("Password").fill(demo_gateway.password)
    await page.get_by_role("button", name="Confirm").click()
    await expect(page.locator("img.qr")).to_be_visible()
    await page.screenshot(path=screenshots / "authenticator-app.png", full_page=True)
    assert await visitor.breaches() == []

    await visitor.open("/account/2fa/webauthn/add/")
    await page.get_by_label("Name").fill("laptop")
    await page.get_by_label("Passwordless").check()
    await page.get_by_role("button", name="Add").click()
    # By way of the recovery codes, which a first factor brings along.
    await page.wait_for_url(lambda address: "webauthn/add" not in address)
    await page.wait_for_load_state()
    await visitor.open("/account/2fa/webauthn/")
    await expect(page.get_by_text("laptop")).to_be_visible()
    await page.screenshot(path=screenshots / "passkey-list.png", full_page=True)
    assert await visitor.breaches() == []

    await page.locator("details.menu summary").click()
    await page.get_by_role("button", name="Sign out").click()
    await visitor.open("/account/login/")
    await page.get_by_role("button", name="Sign in with a passkey").click()
    await page.wait_for_url(f"{url}/")
    await expect(page.locator("details.menu")).to_contain_text("clara")
    assert visitor.problems == []
