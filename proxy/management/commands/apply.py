import json
import os
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from proxy.declared.applying import Outcome, Refused, apply
from proxy.declared.document import MAX_BYTES
from proxy.declared.kinds import Change
from tenants.management.administration import AdministrationCommand, Result, one_line, refusals
from tenants.management.administration import Refused as RefusedCommand

SIGNS = {"add": "+", "change": "~"}


class Command(AdministrationCommand):
    help = (
        "Has the gateway configured as a YAML file says: all of it, or nothing. Again, the same file changes nothing. "
        "docs/configuration-as-code.md says what it may hold."
    )
    several_lines = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE", help="-: standard input.")
        parser.add_argument("--dry-run", action="store_true", help="Say what would be changed, and change nothing.")
        parser.add_argument(
            "--prune",
            action="store_true",
            help="Take away what the file does not name, of the kinds that it speaks of.",
        )
        parser.add_argument("--yes", action="store_true", help="Revoke keys and archive tenants without asking.")

    def handle(self, *args: Any, **options: Any) -> str:
        # Not inside one transaction, as others are: a question is not asked while everybody else waits.
        with refusals():
            result = self.administer(**options)
        return result.as_json() if options["json"] else result.text

    def administer(self, *, file: str, dry_run: bool, prune: bool, yes: bool, **options: Any) -> Result:
        raw = read(file)
        where = Path.cwd() if file == "-" else Path(file).absolute().parent
        how: dict[str, Any] = {"environment": os.environ, "directory": where, "prune": prune}
        try:
            if not (dry_run or yes):
                self.ask(apply(raw, dry_run=True, **how), may_ask=file != "-")
            outcome = apply(raw, dry_run=dry_run, **how)
        except Refused as exc:
            lines = [f"{file}: {problem}" for problem in exc.problems]
            raise RefusedCommand(*lines) from None
        data = {"dry_run": dry_run, "changes": [as_data(change) for change in outcome.changes], "keys": outcome.keys}
        return Result(report(outcome, dry_run=dry_run), data, changed=bool(outcome.changes) and not dry_run)

    def ask(self, outcome: Outcome, *, may_ask: bool) -> None:
        lost = [
            f"{change.action} the {change.noun} {change.name}" for change in outcome.changes if change.takes_access_away
        ]
        if not lost:
            return
        named = one_line("; ".join(lost[:20])) + (f"; and {len(lost) - 20} more" if len(lost) > 20 else "")
        if not may_ask or not sys.stdin.isatty():
            raise RefusedCommand(f"This would {named}. Look with --dry-run, then give --yes.")
        self.stderr.write(f"This would {named}.")
        if input("Do it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise RefusedCommand("Nothing was changed.")


def read(file: str) -> bytes:
    """No more than can be taken."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with Path(file).open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise RefusedCommand(f"{file} cannot be read: {getattr(exc, 'strerror', None) or exc}.") from None


def as_data(change: Change) -> dict[str, Any]:
    return {
        "action": change.action,
        "kind": change.noun,
        "name": change.name,
        "fields": {name: list(values) for name, values in change.fields.items()},
    }


def report(outcome: Outcome, *, dry_run: bool) -> str:
    lines = []
    for change in outcome.changes:
        lines.append(f"{SIGNS.get(change.action, '-')} {change.action} {change.noun} {change.name}")
        if change.action in SIGNS:
            lines += [f"    {name}: {shown(*values)}" for name, values in change.fields.items()]
    lines += [f"  stays: {name}, which is in force" for name in outcome.kept]
    lines += [f"The key {name}, told only this once: {clear_text}" for name, clear_text in outcome.keys.items()]
    lines.append(summary(outcome, dry_run=dry_run))
    return "\n".join(one_line(line) if line[:1] != " " else f"    {one_line(line)}" for line in lines)


def shown(before: Any, after: Any) -> str:
    old, new = (json.dumps(value, ensure_ascii=False) for value in (before, after))
    if before is None:
        return new if not isinstance(after, str) else after or '""'
    return f"{old} → {new}" if after is not None else f"{old} → (none)"


def summary(outcome: Outcome, *, dry_run: bool) -> str:
    if not outcome.changes:
        return "Nothing to change."
    actions = [change.action for change in outcome.changes]
    numbers = (actions.count("add"), actions.count("change"), sum(action not in SIGNS for action in actions))
    text = ", ".join(
        f"{number} {word}" for number, word in zip(numbers, ("added", "changed", "taken away"), strict=True)
    )
    return f"{text}. This was a dry run: nothing was changed." if dry_run else f"{text}."
