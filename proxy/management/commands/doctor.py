import json
import logging
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from gateway_site.doctor import Finding, Level, examine
from tenants.management.administration import one_line


class Command(BaseCommand):
    help = "Says what is wrong with this installation, and how to mend it. Changes nothing; exit code 1: a problem."
    # It runs them itself, and goes on.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print all as one JSON object.")

    def handle(self, *, json: bool, **options: Any) -> str | None:
        # What its probes find is told below.
        logging.getLogger("proxy.fleet.probes").setLevel(logging.CRITICAL)
        found = examine()
        problems = sum(finding.level is Level.PROBLEM for _, finding in found)
        self.stdout.write(_as_json(found, problems) if json else "\n".join(_lines(found, problems)))
        if problems:
            raise SystemExit(1)
        return None


def _as_json(found: list[tuple[str, Finding]], problems: int) -> str:
    findings = [
        {"about": name, "level": finding.level, "text": finding.text, "mend": finding.mend} for name, finding in found
    ]
    return json.dumps({"problems": problems, "findings": findings}, ensure_ascii=False)


def _lines(found: list[tuple[str, Finding]], problems: int) -> list[str]:
    lines = []
    for name, finding in found:
        mark = finding.level.upper() if finding.level is Level.PROBLEM else finding.level
        lines.append(f"{mark:8} {name}: {one_line(finding.text)}")
        if finding.mend:
            lines.append(f"{'':8} → {one_line(finding.mend)}")
    return [*lines, "", f"{problems} problems." if problems != 1 else "1 problem."]
