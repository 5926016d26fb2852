from io import StringIO
from typing import Any

from django.core.management.base import BaseCommand

from proxy.declared.exporting import export
from tenants.management.administration import refusals


class Command(BaseCommand):
    help = "Prints what is configured as a file that 'apply' takes, without secrets."
    requires_system_checks = []

    def handle(self, **options: Any) -> str:
        out = StringIO()
        with refusals():
            export(out)
        return out.getvalue()
