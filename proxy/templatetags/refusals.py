"""What pages of other apps say about refused calls."""

from datetime import timedelta
from typing import Any

from django import template
from django.utils import timezone

from proxy.models import RefusalCount
from proxy.refusal_reasons import reason as words_for

register = template.Library()

SHOWN_FOR = timedelta(days=7)


@register.filter
def reason(code: str) -> str:
    return words_for(code)


@register.simple_tag
def refusals_of(prefix: str) -> list[dict[str, Any]]:
    """What calls with a key were refused for in the last days, the most frequent first."""
    rows = RefusalCount.objects.filter(key_prefix=prefix, minute__gte=timezone.now() - SHOWN_FOR)
    return rows.by_code()
