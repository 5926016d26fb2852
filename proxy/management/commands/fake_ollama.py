from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from proxy.fake_ollama import command_line


class Command(BaseCommand):
    help = "Run a server that answers as Ollama does, for demonstrations and tests."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        command_line.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        command_line.run(options)
