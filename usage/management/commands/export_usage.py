import os
import sys
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from tenants.management.administration import moment, refusals, tenant_named
from usage.export import as_csv, as_json, rows
from usage.models import UsageRecord


class Command(BaseCommand):
    help = "Writes records of calls to standard output."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--from", dest="since", type=moment, metavar="ISO", help="Calls admitted then or later.")
        parser.add_argument("--to", dest="until", type=moment, metavar="ISO", help="Calls admitted before then.")
        parser.add_argument("--tenant", metavar="NAME")
        parser.add_argument("--format", choices=("csv", "json"), default="csv")

    def handle(
        self, *args: Any, since: datetime | None, until: datetime | None, tenant: str | None, **options: Any
    ) -> None:
        write = {"csv": as_csv, "json": as_json}[options["format"]]
        with refusals():
            records = UsageRecord.objects.all()
            if since:
                records = records.filter(started_at__gte=since)
            if until:
                records = records.filter(started_at__lt=until)
            if tenant is not None:
                records = records.filter(tenant=tenant_named(tenant, archived=True))
            try:
                for line in write(rows(records)):
                    self.stdout.write(line, ending="")
                self.stdout.flush()
            except BrokenPipeError:
                # The reader (head, less) has seen enough. Python must not fail on its own flush at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
