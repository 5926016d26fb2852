"""How fast usage is read at scale: reports, request lists, the admin's list, a large export (benchmarks/make_usage.py).

    DATABASE_URL=sqlite:////tmp/large.sqlite3 python benchmarks/usage_pages.py

Each figure is of many different questions: of the largest and the smallest tenant, one's own keys, and all tenants.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from django.conf import settings
from django.db import connection
from django.test import Client, RequestFactory

from benchmarks import processes
from tenants.models import ApiKey, Tenant, User
from usage import export, request_lists
from usage.models import UsageRecord
from usage.reports import PRESETS, Question, Scope, all_scopes, report, today
from usage.request_lists import Cursor, RequestFilters

Work = tuple[str, Callable[[], object]]
EXPORTED = 1_000_000
PAGES, LISTS = 300, 200  # milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slowest", type=int, default=3, help="How many of the slowest questions are named.")
    parser.add_argument("--only", default="", help="Part of the name of what is measured.")
    parser.add_argument("--no-export", action="store_true")
    options = parser.parse_args()
    settings.ALLOWED_HOSTS = ["*"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT max(id) FROM usage_dailyusage")
        days = cursor.fetchone()[0]
    print(f"{connection.vendor}, {days:,} daily sums")
    for name, bar, works in measured():
        if options.only in name:
            show(name, bar, list(works), options.rounds, options.slowest)
    if not options.no_export and options.only in "export":
        show_export()


def measured() -> Iterator[tuple[str, int, Iterator[Work]]]:
    yield "reports, a tenant or one's own", PAGES, reports(of_people())
    yield "reports, all tenants", PAGES, reports([everything()])
    yield "usage page", PAGES, usage_pages()
    yield "home", PAGES, home_pages()
    yield "request lists, a tenant or one's own", LISTS, lists(of_people())
    yield "request lists, all tenants", LISTS, lists([everything()])
    yield "request pages", LISTS, request_pages()
    yield "admin's record list", LISTS, admin_lists()


def show(name: str, bar: int, works: list[Work], rounds: int, slowest: int) -> None:
    taken: list[tuple[float, str]] = []
    for number in range(rounds + 1):
        for what, work in works:
            began = time.perf_counter()
            work()
            if number:  # the first round warms up
                taken.append((1000 * (time.perf_counter() - began), what))
    if not taken:
        print(f"{name:38} nothing to measure")
        return
    times = sorted(milliseconds for milliseconds, _ in taken)
    p95 = times[min(len(times) - 1, round(0.95 * len(times)))]
    verdict = "" if p95 <= bar else f"   above {bar} ms"
    print(
        f"{name:38} median {statistics.median(times):6.0f} ms   p95 {p95:6.0f} ms   most {times[-1]:6.0f} ms   "
        f"of {len(times)}{verdict}"
    )
    worst: dict[str, float] = {}
    for milliseconds, what in taken:
        worst[what] = min(milliseconds, worst.get(what, milliseconds))
    for what in sorted(worst, key=lambda what: -worst[what])[:slowest]:
        print(f"    {worst[what]:6.0f} ms  {what}", flush=True)


# Whose.


def largest() -> Tenant:
    return Tenant.objects.get(name="large 1")


def people() -> list[User]:
    """Owners of the largest and of the smallest tenant, and a member of the largest."""
    last = Tenant.objects.order_by("-pk")[0].name.removeprefix("large ")
    return [User.objects.get(username=name) for name in ("owner-1", f"owner-{last}", "member-1-1")]


def of_people() -> list[Scope]:
    return [all_scopes(user)[0] for user in people()]


def administrator() -> User:
    found, _ = User.objects.get_or_create(username="administrator", is_staff=True, is_superuser=True)
    return found


def everything() -> Scope:
    return all_scopes(administrator())[0]


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


# What is asked.

BY = ("day", "month", "model", "key", "user", "backend", "end_user", "tenant")


def queries() -> Iterator[dict[str, str]]:
    """As a usage page asks them."""
    for name in PRESETS:
        for by in BY:
            yield {"range": name, "by": by, "measure": "cost"}
        if name in ("today", "yesterday", "7d"):
            yield {"range": name, "by": "hour"}
    last = today()
    first = last.replace(year=last.year - 1)
    for by in BY:
        yield {"first": str(first), "last": str(last), "by": by, **({} if by in ("day", "month") else {"per": "day"})}


def reports(scopes: list[Scope]) -> Iterator[Work]:
    for scope in scopes:
        for query in queries():
            question = Question.read(query, today())
            yield f"{scope.label}: {query}", lambda scope=scope, question=question: report(scope, question)


def usage_pages() -> Iterator[Work]:
    for user in (*people(), administrator()):
        client = signed_in(user)
        for query in queries():
            yield f"{user}: {query}", lambda client=client, query=query: got(client, "/usage/", query)


def home_pages() -> Iterator[Work]:
    for user in (*people(), administrator()):
        client = signed_in(user)
        yield str(user), lambda client=client: got(client, "/")


def filters() -> Iterator[dict[str, str]]:
    key = ApiKey.objects.filter(tenant=largest()).order_by("pk")[2]
    yield from (
        {}, {"model": "gemma3:27b"}, {"model": "no such model"}, {"backend": "gpu3"}, {"outcome": "cut"},
        {"outcome": "failures"}, {"outcome": "coalesced"}, {"status": "504"}, {"status": "5xx"},
        {"slower_ms": "60000"}, {"key": key.prefix}, {"user": "none"}, {"end_user": "customer 7"},
        {"model": "qwen3:32b", "outcome": "timeout"}, {"tenant": str(key.tenant_id)}, {"client_id": "none such"},
        {"since": "2026-01-01", "until": "2026-02-01", "outcome": "failed"},
    )  # fmt: skip


def places(scope: Scope) -> Iterator[Cursor | None]:
    """The first page, and others anywhere in the whole."""
    chance = random.Random(7)
    ends = UsageRecord.objects.order_by("started_at").values_list("started_at", flat=True)
    first, last = ends[0], ends.reverse()[0]
    yield None
    for newer in (False, True):
        at = first + (last - first) * chance.random()
        yield Cursor(at, request_lists.UUID(int=chance.getrandbits(128)), newer)


def lists(scopes: list[Scope]) -> Iterator[Work]:
    for scope in scopes:
        for query in filters():
            asked = RequestFilters.read(query)
            for place in places(scope):
                yield (
                    f"{scope.label}: {query} from {place}",
                    lambda scope=scope, asked=asked, place=place: request_lists.page(scope, asked, place),
                )


def request_pages() -> Iterator[Work]:
    for user in (*people(), administrator()):
        client = signed_in(user)
        for query in filters():
            yield f"{user}: {query}", lambda client=client, query=query: got(client, "/requests/", query)


def admin_lists() -> Iterator[Work]:
    client = signed_in(administrator())
    chance = random.Random(3)
    ids = [str(pk) for pk in UsageRecord.objects.order_by("-started_at").values_list("pk", flat=True)[:3]]
    for query in (
        {}, {"outcome__exact": "cut"}, {"outcome__exact": "failed"}, {"outcome__exact": "coalesced"},
        {"stream__exact": "0"}, {"estimated__exact": "1"}, {"q": chance.choice(ids)}, {"q": "no such id"},
        {"started_at__gte": "2026-03-01 00:00:00+00:00", "started_at__lt": "2026-04-01 00:00:00+00:00"},
        {"p": "2"}, {"p": "39"},
    ):  # fmt: skip
        yield str(query), lambda query=query: got(client, "/admin/usage/usagerecord/", query)


def got(client: Client, path: str, query: dict[str, str] | None = None) -> None:
    answer = client.get(path, query or {})
    if answer.status_code != 200:
        raise SystemExit(f"{path} {query}: {answer.status_code}")


def show_export() -> None:
    pid = processes.os.getpid()
    before = most = processes.rss_bytes(pid)
    began, written, rows = time.perf_counter(), 0, 0
    response = export.requests_download(RequestFactory().get("/"), everything(), RequestFilters(), "csv")
    for piece in response:
        written += len(piece)
        rows += piece.count(b"\r\n")
        most = max(most, processes.rss_bytes(pid))
        if rows > EXPORTED:
            break
    took = time.perf_counter() - began
    print(
        f"export: {rows - 1:,} rows, {written / 2**20:.0f} MiB in {took:.0f} s ({rows / took:,.0f} rows a second), "
        f"memory +{(most - before) / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()
