from typing import Any

from django.core.management.base import CommandParser

from proxy.config_json.importing import TENANT, import_file
from proxy.config_json.reading import BadConfig
from tenants.management.administration import AdministrationCommand, Refused, Result, one_line


class Command(AdministrationCommand):
    help = (
        "Takes over the config.json of another gateway: its servers, keys and rules become rows, and it says of each "
        "field what was done. Again, the same file changes nothing."
    )
    several_lines = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE")
        parser.add_argument(
            "--tenant", default=TENANT, metavar="NAME", help="Whose the keys are (default: %(default)s)"
        )

    def administer(self, *, file: str, tenant: str, **options: Any) -> Result:
        try:
            report = import_file(file, tenant=tenant)
        except BadConfig as exc:
            raise Refused(str(exc)) from None
        text = "\n".join(one_line(f"{field}: {done}") for field, done in report.lines) or "The file says nothing."
        return Result(text, {"file": file, "fields": report.by_field}, changed=report.changed)
