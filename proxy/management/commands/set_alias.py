from typing import Any

from django.core.management.base import CommandParser

from proxy.default_models import WORDS
from proxy.model_names import InvalidModelName, canonical_pattern, parse
from proxy.models import ModelAlias
from tenants.management.administration import AdministrationCommand, Refused, Result, save_changes


class Command(AdministrationCommand):
    help = "Serves a model under another name or pattern of names."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("pattern", help='What clients ask for, e.g. "gpt-4o" or "gpt-*".')
        parser.add_argument("model", help="The model that answers; @chat or @embedding: the default models.")

    def administer(self, *, pattern: str, model: str, **options: Any) -> Result:
        pattern, model = pattern.strip(), model.strip()
        try:
            if model not in WORDS:
                parse(model)
        except InvalidModelName:
            raise Refused(
                f"“{model}” cannot be the name of a model. Write one such as qwen3:8b, or @chat or @embedding."
            ) from None
        if canonical_pattern(pattern) == canonical_pattern(model):
            raise Refused("Both names mean the same model. An alias serves a model under another name.")
        alias = ModelAlias.objects.filter(pattern=pattern).first() or ModelAlias(pattern=pattern)
        changed = save_changes(alias, model=model, enabled=True)
        verb = "Set" if changed else "Already set:"
        return Result(f"{verb} {alias}.", {"id": alias.pk, "pattern": pattern, "model": model}, changed=changed)
