from typing import Any

from django.core.management.base import CommandParser

from proxy.models import ModelPolicy
from tenants.management.administration import AdministrationCommand, Result, WrongUsage, save_changes

OPTIONS = ("num_ctx", "keep_alive", "max_output_tokens")


class Command(AdministrationCommand):
    help = "Sets what every call of a model gets, whatever it asks for. What is not given stays as it is."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("pattern", help='A model or a pattern; "*" for all.')
        parser.add_argument("--num-ctx", type=int, metavar="N", help="Context length the model is loaded with.")
        parser.add_argument("--keep-alive", metavar="V", help='How long it stays loaded: "30m", or -1 for ever.')
        parser.add_argument("--max-output-tokens", type=int, metavar="N", help="The most one call may generate.")

    def administer(self, *, pattern: str, **options: Any) -> Result:
        given = {name: options[name] for name in OPTIONS if options[name] is not None}
        if not given:
            raise WrongUsage("Give at least one of --num-ctx, --keep-alive and --max-output-tokens.")
        pattern = pattern.strip()
        policy = ModelPolicy.objects.filter(pattern=pattern).first() or ModelPolicy(pattern=pattern)
        changed = save_changes(policy, **given)
        shown = ", ".join(f"{name} {getattr(policy, name)}" for name in OPTIONS if getattr(policy, name))
        data = {"id": policy.pk, "pattern": pattern, **{name: getattr(policy, name) for name in OPTIONS}}
        return Result(f"{'Set' if changed else 'Already set'} for {policy}: {shown}.", data, changed=changed)
