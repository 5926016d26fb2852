"""Configuration as code beside a running gateway: how soon it acts, and that a dry run leaves no trace."""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenants.keys import make_clear_text
from tests.live.gateway import ROOT

# What a change may take to act. Generous: the machine may do other things; what it took is printed.
CEILING = 10


def manage(gateway, *words):
    done = subprocess.run(
        [sys.executable, "manage.py", *words],
        cwd=ROOT, env=gateway.env, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(gateway, name, text):
    path = Path(gateway.directory) / name
    path.write_text(text)
    return str(path)


async def until(gateway, key, status):
    """Seconds until a listing with a key has a status."""
    began = time.monotonic()
    async with gateway.client(key) as client:
        while (await client.get("/api/tags")).status_code != status:
            assert time.monotonic() - began < CEILING, gateway.log()[-2000:]
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_what_is_applied_acts_within_a_second(make_gateway, fake):
    gateway = make_gateway()
    await asyncio.to_thread(gateway.start)
    clear_text = make_clear_text()[1]
    written(gateway, "secret", clear_text)
    file = written(
        gateway,
        "gateway.yaml",
        "tenants:\n- name: team\n"
        "keys:\n- {tenant: team, name: app, secret_file: secret, models: [llama3.2]}\n"
        f"backends:\n- {{name: fake, url: '{fake.url}', slots: 4}}\n",
    )
    assert "3 added" in await asyncio.to_thread(manage, gateway, "apply", file)
    allowed = await until(gateway, clear_text, 200)
    await gateway.until_it_lists("llama3.2", key=clear_text)
    empty = written(gateway, "empty.yaml", "keys: []\n")
    assert "1 taken away" in await asyncio.to_thread(manage, gateway, "apply", empty, "--prune", "--yes")
    refused = await until(gateway, clear_text, 401)
    print(f"\nafter apply had ended: a new key acted in {allowed * 1000:.0f} ms, its end in {refused * 1000:.0f} ms")


@pytest.mark.parametrize("options", [["--dry-run"], ["--dry-run", "--prune"]], ids=" ".join)
def test_a_dry_run_leaves_the_database_as_it_was_to_the_byte(make_gateway, options):
    gateway = make_gateway()
    database = Path(gateway.directory) / "gateway.sqlite3"
    gateway.make_key("there")
    gateway.connection.close()
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    file = written(
        gateway,
        "gateway.yaml",
        "tenants:\n- name: team\nkeys: []\nlimits:\n- {for: {tenant: team}, metric: tokens, window: day, amount: 9}\n",
    )
    said = json.loads(manage(gateway, "apply", file, *options, "--json"))
    assert len(said["changes"]) == (4 if "--prune" in options else 2)
    assert said["changed"] is False
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before
    wal = database.with_name(f"{database.name}-wal")
    assert not wal.exists() or not wal.stat().st_size
