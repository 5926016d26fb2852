from typing import Any

from django.core.management.base import CommandParser

from proxy.models import Backend
from tenants.management.administration import AdministrationCommand, Refused, Result, save_changes


class Command(AdministrationCommand):
    help = "Takes a backend out of service: it gets no new calls and finishes its streams."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")

    def administer(self, *, name: str, **options: Any) -> Result:
        backend = Backend.objects.filter(name=name, archived_at=None).first()
        if backend is None:
            known = ", ".join(Backend.objects.current().values_list("name", flat=True)[:20]) or "none"
            raise Refused(f"There is no backend “{name}”. There are: {known}.")
        changed = save_changes(backend, enabled=False)
        verb = "Disabled" if changed else "Already disabled:"
        text = f"{verb} {backend}. To enable it again: manage.py add_backend {backend} {backend.url}"
        return Result(text, {"backend": backend.name, "id": backend.pk, "enabled": False}, changed=changed)
