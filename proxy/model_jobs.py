"""Pulls, loads, unloads and deletes models on one backend, in a thread of the worker that was asked.

The row in the database is all that pages know of a job: it survives the page, and tells when its process has died.
"""

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import httpx
import orjson
from django.db import DatabaseError, IntegrityError, InterfaceError, connections, transaction
from django.db.models.functions import Now
from django.utils import timezone

from proxy.fleet.probes import problem_of
from proxy.models import Backend as BackendRow
from proxy.models import ModelJob
from proxy.models.jobs import KEEP_JOBS
from proxy.reaching import CannotReach, Reached, reach
from proxy.rules_watch import backend_of, policies
from proxy.snapshot import Backend, Policy
from proxy.threads import WorkThread
from tenants.announcements import announce
from tenants.models import User

logger = logging.getLogger(__name__)

Action = ModelJob.Action
State = ModelJob.State

# Progress is written, and a wish to cancel read, this often.
NOTE_SECONDS = 1.0
# How long a backend may say nothing: it reads whole models from slow disks, and checks what it pulled.
SILENCE_SECONDS = 900.0
# For so long it is tried to write how a job ended.
FINISH_SECONDS = 600.0
MAX_LINE = 64 << 10

# What Ollama says, and what to make of it. Anything else stays in its log (B15).
_KNOWN_PROBLEMS = (
    ("file does not exist", "The registry has no model of this name."),
    ("not found", "The backend does not have this model."),
    ("no space left", "The disk of the backend is full."),
    ("requires more system memory", "The backend has not enough memory for this model."),
    ("does not support generate", "This model cannot be loaded that way."),
    ("newer version of ollama", "This model needs a newer Ollama."),
    ("unauthorized", "The registry wants the backend to sign in."),
    ("i/o timeout", "The backend does not reach the registry."),
    ("no such host", "The backend does not reach the registry."),
    ("connection refused", "The backend does not reach the registry."),
)


class Busy(Exception):
    """Something is being done with this model there already."""


class Failed(Exception):
    """Its text is for the page."""


def start(backend: BackendRow, action: str, model: str, user: User) -> ModelJob:
    """Raises Busy."""
    ModelJob.objects.give_up_lost()
    ModelJob.objects.filter(finished_at__lt=timezone.now() - KEEP_JOBS).delete()
    try:
        with transaction.atomic():
            job = ModelJob.objects.create(backend=backend, action=action, model=model, started_by=user)
    except IntegrityError:
        raise Busy from None
    transaction.on_commit(threading.Thread(target=_run, args=(job.pk,), name=f"job {job.pk}", daemon=True).start)
    return job


def _run(job_id: int) -> None:
    try:
        asyncio.run(Work(job_id).run())
    except Exception:
        # The page will say that the job was lost.
        logger.exception("The job %d could not be done", job_id)


@dataclass(slots=True)
class Progress:
    """What a backend has said so far. Ollama pulls a model in layers, and tells the size of each when it begins."""

    status: str = ""
    layers: dict[str, tuple[int, int]] = field(default_factory=dict)  # digest → (completed, total) bytes

    def read(self, line: dict[str, Any]) -> None:
        status = line.get("status")
        if isinstance(status, str):
            self.status = "".join(char for char in status[:200] if char.isprintable())
        digest, completed, total = line.get("digest"), line.get("completed", 0), line.get("total", 0)
        if isinstance(digest, str) and _is_size(completed) and _is_size(total) and len(self.layers) < 1000:
            self.layers[digest[:100]] = min(completed, total), total

    @property
    def completed(self) -> int:
        return sum(completed for completed, _ in self.layers.values())

    @property
    def total(self) -> int:
        return sum(total for _, total in self.layers.values())


class Work:
    """One job, in a loop of its own; the database in a thread beside it."""

    def __init__(self, job_id: int) -> None:
        self.job_id = job_id
        self.progress = Progress()
        self._misses = False  # the database did not answer when it was last asked

    async def run(self) -> None:
        self._database = WorkThread(f"job {self.job_id} database")
        try:
            state, problem = await self._outcome()
            await self._end(state, problem)
        finally:
            self._database.stop(connections.close_all)

    async def _outcome(self) -> tuple[State, str]:
        try:
            action, model, backend, policy = await self._database.run(self._read)
        except ValueError as exc:
            return State.FAILED, str(exc)
        doing = asyncio.create_task(self._do(action, model, backend, policy))
        while not doing.done():
            await asyncio.wait({doing}, timeout=NOTE_SECONDS)
            if not doing.done() and await self._is_unwanted():
                doing.cancel()
        try:
            await doing
        except asyncio.CancelledError:
            return State.CANCELLED, ""
        except (Failed, CannotReach) as exc:
            return State.FAILED, str(exc)
        except (httpx.HTTPError, TimeoutError, OSError) as exc:
            return State.FAILED, problem_of(exc)
        return State.DONE, ""

    async def _is_unwanted(self) -> bool:
        """As _note; False where the database does not answer, which is asked again in a second: a pull takes hours."""
        try:
            unwanted = await self._database.run(self._note)
        except (DatabaseError, InterfaceError) as exc:
            await self._note_miss(exc)
            return False
        self._misses = False
        return unwanted

    async def _end(self, state: State, problem: str) -> None:
        deadline = time.monotonic() + FINISH_SECONDS
        while True:
            try:
                await self._database.run(self._finish, state, problem)
            except (DatabaseError, InterfaceError) as exc:
                await self._note_miss(exc)
            else:
                return
            if time.monotonic() > deadline:
                logger.error("That the job %d is %s could not be written down", self.job_id, state)
                return
            await asyncio.sleep(NOTE_SECONDS)

    async def _note_miss(self, exc: Exception) -> None:
        if not self._misses:
            logger.warning("The job %d waits for the database (%s)", self.job_id, type(exc).__name__)
        self._misses = True
        await self._database.run(connections.close_all)

    async def _do(self, action: str, model: str, backend: Backend, policy: Policy | None) -> None:
        async with reach(backend) as reached:
            if action == Action.PULL:
                await self._pull(reached, model)
            elif action == Action.DELETE:
                await _ask(reached, "DELETE", "/api/delete", {"model": model})
            elif action == Action.UNLOAD:
                await _ask(reached, "POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})
            else:
                await _load(reached, model, policy)

    async def _pull(self, reached: Reached, model: str) -> None:
        body = {"model": model, "stream": True}
        async with reached.stream("POST", "/api/pull", body, silence=SILENCE_SECONDS) as answer:
            await _refuse_errors(answer)
            async for line in _lines(answer):
                if isinstance(line.get("error"), str):
                    raise Failed(_in_our_words(line["error"]))
                self.progress.read(line)
        if self.progress.status != "success":
            raise Failed("The backend ended the pull before it was complete. Start it again: it keeps what it has.")

    # In the thread of the database.

    def _read(self) -> tuple[str, str, Backend, Policy | None]:
        job = ModelJob.objects.select_related("backend").get(pk=self.job_id)
        return job.action, job.model, backend_of(job.backend), policy_for(job.model)

    def _note(self) -> bool:
        """Writes how far it is; returns whether somebody wants it to end."""
        mine = ModelJob.objects.filter(pk=self.job_id, state=State.RUNNING)
        still = mine.update(
            status=self.progress.status,
            completed=self.progress.completed,
            total=self.progress.total,
            seen_at=Now(),
        )
        return not still or mine.filter(wants_cancel=True).exists()

    def _finish(self, state: State, problem: str) -> None:
        self._note()
        ModelJob.objects.filter(pk=self.job_id, state=State.RUNNING).update(
            state=state, problem=problem[:300], finished_at=Now()
        )
        backend_id = ModelJob.objects.values_list("backend_id", flat=True).get(pk=self.job_id)
        announce({"type": "models", "backend": backend_id})


def policy_for(model: str) -> Policy | None:
    """What calls of a model are set to: a model that was loaded otherwise would be loaded again by the first call."""
    return next((policy for policy in policies() if fnmatchcase(model, policy.pattern)), None)


async def _load(reached: Reached, model: str, policy: Policy | None) -> None:
    body: dict[str, Any] = {"model": model, "stream": False}
    if policy is not None:
        options = dict(policy.load_options)
        if policy.num_ctx:
            options["num_ctx"] = policy.num_ctx
        if options:
            body["options"] = options
        if policy.keep_alive is not None:
            body["keep_alive"] = policy.keep_alive
    try:
        await _ask(reached, "POST", "/api/generate", body)
    except Failed:
        # Models that only embed.
        await _ask(reached, "POST", "/api/embed", {**body, "input": []})


async def _ask(reached: Reached, method: str, path: str, body: dict[str, Any]) -> None:
    async with reached.stream(method, path, body, silence=SILENCE_SECONDS) as answer:
        await _refuse_errors(answer)
        async for line in _lines(answer):
            if isinstance(line.get("error"), str):
                raise Failed(_in_our_words(line["error"]))


async def _refuse_errors(answer: httpx.Response) -> None:
    """Raises Failed for an answer that is none of 200."""
    if answer.status_code == 200:
        return
    text = ""
    async for line in _lines(answer):
        text = line["error"] if isinstance(line.get("error"), str) else ""
        break
    raise Failed(_in_our_words(text, f"The backend refused it with the status {answer.status_code}."))


async def _lines(answer: httpx.Response) -> Any:
    """The JSON objects of an answer, one a line. Raises Failed for what is no such thing."""
    rest = b""
    async for chunk in answer.aiter_raw():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield _parsed(line)
        if len(rest) > MAX_LINE:
            raise Failed("The backend does not answer as Ollama does.")
    if rest.strip():
        yield _parsed(rest)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise Failed("The backend does not answer as Ollama does.")
    return value


def _in_our_words(text: str, otherwise: str = "Ollama reports an error; its own log says which.") -> str:
    lowered = text.lower()
    return next((words for part, words in _KNOWN_PROBLEMS if part in lowered), otherwise)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53
