"""In proxy, although prices are usage's: only here can it be told whether a backend of that name exists."""

from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from proxy.model_names import canonical_pattern
from proxy.models import Backend
from tenants import money
from tenants.management.administration import AdministrationCommand, Refused, Result
from usage.models import Price

PARTS_KEPT = ("gpu_second_nano", "kwh_nano", "watts")


class Command(AdministrationCommand):
    help = "Sets the price of a model from now on, in units of the currency per 1,000,000 tokens."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model", help='A model or a pattern, e.g. "llama3.2" or "qwen3:*".')
        parser.add_argument("--input", required=True, metavar="X", help="Per 1,000,000 prompt tokens, e.g. 0.15.")
        parser.add_argument("--output", required=True, metavar="Y", help="Per 1,000,000 generated tokens.")
        parser.add_argument("--backend", default="", metavar="NAME", help="Only on this backend.")

    def administer(self, *, model: str, input: str, output: str, backend: str, **options: Any) -> Result:
        if backend and not Backend.objects.current().filter(name=backend).exists():
            raise Refused(f"There is no backend “{backend}”. Add it with: manage.py add_backend {backend} URL")
        name, now = canonical_pattern(model), timezone.now()
        # A new row, not a changed one: calls of the past keep the price they were made at.
        price = Price(
            model=name,
            backend=backend,
            input_nano=nano("input", input),
            output_nano=nano("output", output),
            valid_from=now,
        )
        current = Price.objects.filter(model=name, backend=backend, valid_from__lte=now).order_by("-valid_from").first()
        for part in PARTS_KEPT:
            setattr(price, part, getattr(current, part, 0))
        changed = current is None or (current.input_nano, current.output_nano) != (price.input_nano, price.output_nano)
        if changed:
            price.full_clean()
            price.save()
        data = {
            "id": price.pk or (current and current.pk),
            "model": name,
            "backend": backend,
            "input": money.shown(price.input_nano),
            "output": money.shown(price.output_nano),
        }
        verb = "Set" if changed else "Already set:"
        where = f" on {backend}" if backend else ""
        text = f"{verb} {name}{where} costs {data['input']} in, {data['output']} out per 1,000,000 tokens."
        return Result(text, data, changed=changed)


def nano(name: str, text: str) -> int:
    try:
        return money.to_nano(text)
    except ValueError as exc:
        raise Refused(f"{name}: {exc}") from None
