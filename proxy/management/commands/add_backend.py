from typing import Any

from django.core.management.base import CommandParser

from proxy.backend_url import normalise_backend_url
from proxy.models import Backend
from proxy.resolution import refuse_where_it_leads
from tenants.management.administration import AdministrationCommand, Refused, Result, save_changes


class Command(AdministrationCommand):
    help = "Adds an Ollama server, or changes the one of that name. What is not given stays as it is."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("url", help="E.g. http://10.0.0.5:11434")
        parser.add_argument("--slots", type=int, metavar="N", help="Its OLLAMA_NUM_PARALLEL (default: 1).")
        parser.add_argument("--transport", choices=Backend.Transport.values)
        parser.add_argument("--context-length", type=int, metavar="N", help="Its OLLAMA_CONTEXT_LENGTH.")

    def administer(self, *, name: str, url: str, **options: Any) -> Result:
        backend = Backend.objects.filter(name=name).first() or Backend(name=name)
        if backend.archived_at:
            raise Refused(f"A backend “{name}” was deleted. Restore it in the admin, or choose another name.")
        added = backend.pk is None
        given = {
            field: options[field] for field in ("slots", "transport", "context_length") if options[field] is not None
        }
        changed = save_changes(backend, url=checked(url), enabled=True, **given)
        data = {
            "backend": backend.name,
            "id": backend.pk,
            "url": backend.url,
            "slots": backend.slots,
            "transport": backend.transport,
        }
        verb = "Added" if added else "Changed" if changed else "Already there:"
        return Result(f"{verb} {backend} at {backend.url}, {backend.slots} slots.", data, changed=changed)


def checked(url: str) -> str:
    try:
        normalised = normalise_backend_url(url)
        refuse_where_it_leads(normalised)
    except ValueError as exc:
        raise Refused(f"url: {exc}") from None
    return normalised
