"""The playground: a conversation with a model, by a key of one's own. Its calls go over a WebSocket (live/chat.py)."""

from dataclasses import dataclass

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from proxy.offers import allowed, offers
from tenants.models import ApiKey
from tenants.requests import PersonRequest
from tenants.snippets import api_url

# Of more keys nobody chooses from a list.
MOST_KEYS = 100


@dataclass(slots=True)
class Choice:
    """A model, and the prefixes of the keys that may use it."""

    name: str
    keys: list[str]


def urls() -> list[URLPattern]:
    return [path("playground/", playground, name="playground")]


@login_required
@require_safe
def playground(request: PersonRequest) -> HttpResponse:
    mine = ApiKey.objects.filter(user=request.user, may_infer=True, tenant__in=request.user.tenants_for_keys()).usable()
    keys = list(mine.select_related("tenant").order_by("-created_at")[:MOST_KEYS])
    chatting = [offer for offer in offers() if not offer.embeds]
    models: dict[str, Choice] = {}
    for key in keys:
        for offer in allowed(chatting, key.models_allowed, cloud=key.may_use_cloud):
            models.setdefault(offer.name, Choice(offer.name, [])).keys.append(key.prefix)
    return render(request, "playground.html", {
        "keys": keys,
        "models": [models[name] for name in sorted(models)],
        "any_model": bool(chatting),
        "api_url": api_url(),
    })  # fmt: skip
