import asyncio
import json
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.utils import timezone

from proxy.client_address import parse_address
from proxy.explaining import Explanation, Question, Verdict, World, explain, world_of_tables
from proxy.limits import Limits
from tenants.keys import owner_of_secret
from tenants.management.administration import AdministrationCommand, Refused, key_with_prefix, one_line, refusals
from tenants.models import ApiKey

# How long Redis has to answer before the limits are told without it.
REDIS_PATIENCE = 1.0


class Command(AdministrationCommand):
    help = "Says what becomes of a call, step by step: why it is refused, or which backend gets it. Calls nobody."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--key", metavar="PREFIX", help="“-”: a whole key from stdin. Without it: without a key.")
        parser.add_argument("--model", default="", metavar="NAME")
        parser.add_argument("--address", default="127.0.0.1", metavar="IP", help="Of the caller. unix: has none.")
        parser.add_argument("--endpoint", default="/api/chat", metavar="PATH")
        parser.add_argument("--method", default="", help="Where a path takes several.")

    def handle(self, *args: Any, **options: Any) -> str:
        # In no transaction: it reads, and the tables may be large.
        with refusals():
            told = asked(**options)
        return as_json(told) if options["json"] else text_of(told)


def asked(*, key: str | None, model: str, address: str, endpoint: str, method: str, **_: Any) -> Explanation:
    """Raises Refused."""
    caller = None if address == "unix" else parse_address(address)
    if caller is None and address != "unix":
        raise Refused(f"“{address}” is no IP address. Write one such as 203.0.113.9, or unix for a Unix socket.")
    row, secret = _key(key)
    question = Question(
        address=caller,
        path=endpoint.encode(),
        method=method.upper(),
        model=model,
        key_id=row.pk if row is not None else None,
        is_without_key=key is None,
        secret=secret,
    )
    world = world_of_tables(settings.GATEWAY, lambda: timezone.now().timestamp())
    return asyncio.run(_explained(question, world))


def _key(text: str | None) -> tuple[ApiKey | None, bytes]:
    if text is None:
        return None, b""
    if text == "-":
        secret = sys.stdin.readline().strip().encode()
        return owner_of_secret(ApiKey.objects.all(), secret), secret
    return key_with_prefix(text), b""


async def _explained(question: Question, world: World) -> Explanation:
    configuration = world.configuration
    if not configuration.redis_url:
        return await explain(question, world)
    # What all processes count together, this one can ask as well as they can.
    limits = Limits(configuration.time_zone, world.now, configuration.redis_url)
    limits.know(world.snapshot.tables.recorded)
    limits.start()
    try:
        async with asyncio.timeout(REDIS_PATIENCE):
            while not limits.is_shared:  # noqa: ASYNC110 - it tells nobody when it is connected
                await asyncio.sleep(0.01)
    except TimeoutError:
        pass
    try:
        return await explain(question, world.with_limits(limits))
    finally:
        await limits.close()


def as_json(told: Explanation) -> str:
    return json.dumps({**told.as_json(), "changed": False}, ensure_ascii=False)


def text_of(told: Explanation) -> str:
    """A line for each step, its facts below it, and what the client gets."""
    lines = []
    for step in told.steps:
        lines.append(_SIGNS[step.verdict] + one_line(f"{step.title}: {step.text}"))
        lines += ["      " + one_line(f"{name}: {value}") for name, value in step.facts]
    lines += ["", one_line(verdict_of(told))]
    lines += [one_line(f"Note: {note}") for note in told.notes]
    return "\n".join(lines)


_SIGNS = {
    Verdict.PASSES: "  ok ",
    Verdict.WAITS: "wait ",
    Verdict.REFUSED: "  NO ",
    Verdict.UNKNOWN: "   ? ",
    Verdict.NOT_ASKED: "   - ",
}


def verdict_of(told: Explanation) -> str:
    if told.code:
        return f"The client gets {told.status} {told.code}: {told.message}"
    if told.status is None:
        return "As far as is known here, nothing refuses the call."
    return f"The call is answered{f' by {told.backend}' if told.backend else ''}."
