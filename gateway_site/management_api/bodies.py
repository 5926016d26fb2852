"""The JSON of requests and answers: what is not exactly JSON, or is too deep, is refused (threats J4, J5, J8)."""

from typing import Any

import orjson
from django.http import HttpRequest
from ninja.parser import Parser
from ninja.renderers import BaseRenderer

from gateway_site.management_api.errors import BadRequest
from proxy import body
from proxy.errors import BadRequest as BadBody


class StrictParser(Parser):
    def parse_body(self, request: HttpRequest) -> dict[str, Any]:
        try:
            decoded = body.decode(request.body)
        except BadBody as exc:
            raise BadRequest(f"{exc.message[:1].upper()}{exc.message[1:]}.", "invalid_json") from None
        refuse_nul(decoded)
        return decoded


def refuse_nul(value: Any, field: str = "") -> None:
    """PostgreSQL stores none, and in no text here does one mean anything."""
    if isinstance(value, str):
        if "\0" in value:
            raise BadRequest("The text holds a NUL character.", "invalid_text", field=field)
    elif isinstance(value, dict):
        for name, part in value.items():
            refuse_nul(name, field)
            refuse_nul(part, field or name)
    elif isinstance(value, list):
        for part in value:
            refuse_nul(part, field)


class JSONRenderer(BaseRenderer):
    media_type = "application/json"

    def render(self, request: HttpRequest, data: Any, *, response_status: int) -> bytes:
        return rendered(data)


def rendered(data: Any) -> bytes:
    return orjson.dumps(data, option=orjson.OPT_UTC_Z)
