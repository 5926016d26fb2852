"""Hostile texts in every column, and every page that shows them in a real browser (threat T8)."""

import pytest
import pytest_asyncio

from tenants.models import Membership, Role, Tenant, User
from tests.browser.conftest import new_visitor
from tests.live.signed_in import make_person, sign_in
from tests.walk.gateways import fill, opened

# Some hundred pages in one test, on a machine that may do other things besides.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

TEXT = (
    "javascript:zq()//\"><img src=x onerror=zq()><script>zq()</script><zq zq=1 style='color:red'>'-zq()-'"
    "{{31337*3}}\u202e"
)
# Before any script of the page: a text that runs calls zq(), one that wants to and may not breaks the policy.
WATCH = """
window.heard = [];
window.zq = () => window.heard.push("it ran");
document.addEventListener("securitypolicyviolation", (event) => {
    window.heard.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
});
"""
LOOK = """() => ({
    heard: window.heard,
    odd: [...document.querySelectorAll("zq, [zq], img[src='x'], [style*='red'], a[href^='javascript:' i]")].map(
        (element) => element.outerHTML.slice(0, 80)),
    shows: document.documentElement.outerHTML.includes("zq()"),
})"""
PAGES = [page for page in opened() if not page.template.startswith("account/logout")]


@pytest.fixture(scope="module")
def hostile(make_shared_gateway, shared_fake):
    gateway = make_shared_gateway()
    gateway.rows_of_texts = fill(gateway, TEXT)
    gateway.make_backend(shared_fake.url)
    root = make_person(gateway, "root")
    gateway.rows(User).filter(pk=root.pk).update(is_staff=True, is_superuser=True)
    owner = make_person(gateway, "olga")
    gateway.rows(Membership).create(user=owner, tenant=gateway.rows(Tenant).get(name__contains="zq"), role=Role.OWNER)
    gateway.sessions = {"root": sign_in(gateway, root), "owner": sign_in(gateway, owner)}
    return gateway.start()


@pytest_asyncio.fixture(params=["root", "owner"], loop_scope="module")
async def visitor(request, browser, hostile):
    made = await new_visitor(browser, hostile.url)
    cookie = {"name": "sessionid", "value": hostile.sessions[request.param], "url": hostile.url}
    await made.page.context.add_cookies([cookie])
    await made.page.add_init_script(WATCH)
    made.who = request.param
    yield made
    await made.page.context.close()


async def test_t8_no_text_runs_breaks_the_policy_or_becomes_an_element(visitor, hostile):
    page, dialogs, foreign = visitor.page, [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith((hostile.url, "data:")) or foreign.append(request.url))
    shown = 0
    for each in PAGES:
        if visitor.who != "root" and each.template.startswith("admin/"):
            continue
        path = each.paths(hostile.rows_of_texts)[0]
        if await visitor.kind_of(path) != "text/html":
            continue
        await page.goto(visitor.url + path, wait_until="load")
        seen = await page.evaluate(LOOK)
        assert seen["heard"] == [], path
        assert seen["odd"] == [], path
        shown += seen["shows"]
    print(f"\n  shown on {shown} pages", end=" ")
    assert dialogs == []
    assert foreign == []
    assert shown > (40 if visitor.who == "root" else 6)


async def test_the_watch_sees_what_runs_and_what_may_not(visitor, hostile):
    """As a test of the test."""
    page = visitor.page
    await page.goto(hostile.url + "/live/")
    await page.evaluate(
        "() => { document.body.insertAdjacentHTML('beforeend', `<zq></zq><img src=x onerror='zq()'>`); }"
    )
    await page.wait_for_function("window.heard.length > 0")
    seen = await page.evaluate(LOOK)
    assert len(seen["odd"]) == 2
    assert "script-src" in seen["heard"][0]
