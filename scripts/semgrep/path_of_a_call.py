"""Examples of path_of_a_call.yaml; scripts/audit runs them."""

import asyncio
import queue
import subprocess
import time
from pathlib import Path

# ruleid: call-knows-no-database
from django import db

# ruleid: call-knows-no-database
from django.db import connection, models

# ruleid: call-knows-no-database
from django.contrib.auth.models import Permission

# ruleid: call-knows-no-database
from asgiref.sync import sync_to_async as in_thread

# ruleid: call-knows-no-database
import psycopg

# ruleid: call-knows-no-database
import tenants.models as tables

# ruleid: call-knows-no-database
from tenants.models import (
    ApiKey,
    Tenant,
)

# ruleid: call-knows-no-database
from tenants.models.people import User

# ruleid: call-knows-no-database
from proxy import models

# ok: call-knows-no-database
from tenants.models.people import ORDINARY_WEIGHT

# ok: call-knows-no-database
from usage.costs import PriceRow

# ok: call-knows-no-database
from django.conf import settings

from proxy.threads import WorkThread


async def hop(loop, key):
    # ruleid: call-hops-to-no-thread
    await asyncio.to_thread(look_up, key)
    # ruleid: call-hops-to-no-thread
    await loop.run_in_executor(None, look_up, key)
    # ruleid: call-hops-to-no-thread
    await in_thread(look_up)(key)
    # ok: call-hops-to-no-thread
    await WorkThread("metrics").run(look_up, key)


async def block(path, url):
    # ruleid: coroutine-does-not-block
    time.sleep(1)
    # ruleid: coroutine-does-not-block
    subprocess.run(["true"])
    # ruleid: coroutine-does-not-block
    with open(path) as file:
        file.read()
    # ruleid: coroutine-does-not-block
    text = Path(path).read_text()
    # ruleid: coroutine-does-not-block
    key = ApiKey.objects.get(prefix=text)
    # ruleid: coroutine-does-not-block
    with connection.cursor() as cursor:
        # ok: coroutine-does-not-block
        cursor.fetchall()
    # ok: coroutine-does-not-block
    await asyncio.sleep(1)
    return key


async def block_elsewhere(work_thread):
    def look():
        # ok: coroutine-does-not-block
        time.sleep(1)

    await work_thread.run(look)
    # ok: coroutine-does-not-block
    await work_thread.run(lambda: Path("spool").read_bytes())


def wait():
    # ok: coroutine-does-not-block
    time.sleep(1)


class Keeper:
    def start(self, loop):
        # ruleid: task-is-kept
        loop.create_task(self.work())
        # ruleid: task-is-kept
        self.loop.create_task(self.work(), name="work")
        # ruleid: task-is-kept
        asyncio.ensure_future(self.work())
        # ruleid: task-is-kept
        loop.call_later(3, lambda: loop.create_task(self.work()))
        # ok: task-is-kept
        self.task = loop.create_task(self.work())
        # ok: task-is-kept
        self.tasks = [asyncio.create_task(self.work()), asyncio.create_task(self.work())]
        # ok: task-is-kept
        self.kept.add(asyncio.ensure_future(self.work()))
        # ok: task-is-kept
        return loop.create_task(self.work())

    async def work(self):
        async with asyncio.TaskGroup() as tasks:
            # ok: task-is-kept
            tasks.create_task(self.work())
        # ruleid: queue-has-a-bound
        self.line = asyncio.Queue()
        # ruleid: queue-has-a-bound
        self.other = queue.SimpleQueue()
        # ok: queue-has-a-bound
        self.short = asyncio.Queue(100)
        # ok: queue-has-a-bound
        self.shorter = queue.Queue(maxsize=10)
