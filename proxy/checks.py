"""System checks: what cannot work is said before the first call."""

from collections.abc import Sequence
from importlib.util import find_spec

from django.conf import settings
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


@register(Tags.security)
def check_traces(**_: object) -> list[CheckMessage]:
    """What sends traces is installed where they are asked for."""
    if not settings.GATEWAY.otel_endpoint or (find_spec("opentelemetry") and find_spec("opentelemetry.sdk")):
        return []
    return [
        Error(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed.",
            hint="Install the extra: pip install 'ollama-gateway[otel]'. Or leave the variable out.",
            id="proxy.E002",
        )
    ]
