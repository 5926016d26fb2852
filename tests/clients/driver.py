"""A client library in a process of its own: jobs in, what it returned out (see drivers/jobs.py)."""

import asyncio
import json
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = 300  # seconds for one scenario; the first one imports the library
LONGEST_LINE = 1 << 24
# Nothing of the machine's settings: neither proxies nor keys nor a host to talk to.
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


class Driver:
    def __init__(self, command: Sequence[str], log: Path, authorities: Path) -> None:
        """`authorities`: a short file of certificates: the usual one takes 25 ms to read for each client made."""
        self.command = command
        self.log = log
        self.authorities = authorities
        self.process: Process | None = None

    async def start(self) -> None:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment["SSL_CERT_FILE"] = str(self.authorities)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, stdin=PIPE, stdout=PIPE, stderr=log, env=environment, limit=LONGEST_LINE
            )

    async def ask(self, scenario: str, url: str, key: str) -> dict[str, Any]:
        if self.process is None:
            await self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"scenario": scenario, "url": url, "key": key}
        if self.process.returncode is None:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self.process.stdout.readline()
        except TimeoutError:
            self.process.kill()
            return {"failure": f"No answer within {PATIENCE} s. {self.errors()}"}
        return json.loads(line) if line else {"failure": f"The driver has ended. {self.errors()}"}

    def errors(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    async def stop(self) -> None:
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
