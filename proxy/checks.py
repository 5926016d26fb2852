"""System checks: what cannot work is said before the first call."""

from collections.abc import Sequence

from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections

from proxy import triggers


@register(Tags.database)
def check_triggers(*, databases: Sequence[str] | None = None, **_: object) -> list[CheckMessage]:
    """The triggers that make changes act at once are in place."""
    problems: list[CheckMessage] = []
    for using in databases or []:
        tables = connections[using].introspection.table_names()
        if "proxy_configrevision" in tables and (missing := triggers.missing(using)):
            problems.append(
                Error(
                    f"{len(missing)} triggers are missing, e.g. {missing[0]}: changes would not reach running workers.",
                    hint="Run `manage.py migrate`; it puts them back.",
                    id="proxy.E001",
                )
            )
    return problems
