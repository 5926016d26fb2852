"""What the pages know of the backends, whichever process answers them."""

import asyncio
import time
from datetime import timedelta

from django.utils import timezone

from proxy.models import BackendReport


async def report_like(gateway, condition, seconds=40):
    """The one report, once it is as expected."""
    began = time.monotonic()
    while True:
        found = list(gateway.rows(BackendReport).select_related("backend"))
        if len(found) == 1 and condition(found[0]):
            print(f"reported after {time.monotonic() - began:.1f} s")
            return found[0]
        assert time.monotonic() - began < seconds, [(row, row.version, row.models) for row in found]
        await asyncio.sleep(0.1)


async def test_a_report_says_what_a_backend_is_has_and_has_loaded(gateway, fake):
    report = await report_like(gateway, lambda row: row.state == "up" and row.models)
    assert (report.version, report.problem) == (fake.version, "")
    assert [model["name"] for model in report.models] == ["llama3.2:latest", "nomic-embed-text:latest"]
    assert all(model["size"] > 0 and model["digest"] for model in report.models)
    assert gateway.rows(BackendReport).current().model_names() == ["llama3.2:latest", "nomic-embed-text:latest"]
    async with gateway.client(gateway.key) as client:
        await client.post("/api/chat", json={"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}]})
    report = await report_like(gateway, lambda row: row.warm)
    assert [model["name"] for model in report.warm] == ["llama3.2:latest"]


async def test_a_report_says_that_a_backend_went_away(gateway, fake):
    await report_like(gateway, lambda row: row.state == "up")
    await fake.stop()
    report = await report_like(gateway, lambda row: row.state == "down")
    assert report.problem
    assert gateway.rows(BackendReport).current().model_names() == []


async def test_one_of_several_workers_reports_until_it_is_gone(make_gateway, fake):
    gateway = make_gateway(workers=2)
    gateway.make_backend(fake.url)
    await asyncio.to_thread(gateway.start)
    first = await report_like(gateway, lambda row: row.state == "up")
    for seconds in (16, 18):  # due for a confirmation, which the other worker would give as well if it were its turn
        set_back(gateway, seconds=seconds)
        again = await report_like(gateway, lambda row: row.is_current and row.updated_at > first.updated_at)
        assert again.reporter == first.reporter
    set_back(gateway, seconds=50, reporter="a process that was killed")
    assert (
        await report_like(gateway, lambda row: row.updated_at > again.updated_at)
    ).reporter != "a process that was killed"


def set_back(gateway, *, seconds, **fields):
    gateway.rows(BackendReport).update(updated_at=timezone.now() - timedelta(seconds=seconds), **fields)
