from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from gateway_site import cli


class Command(BaseCommand):
    help = cli.RUN_HELP
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        cli.add_run_arguments(parser)

    def handle(self, *, model: str, prompt: list[str], url: str, pull: bool, **options: Any) -> None:
        code = cli.run(model=model, prompt=prompt, url=url, pull=pull)
        if code:
            raise SystemExit(code)
