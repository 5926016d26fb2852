"""All of the management API, and its OpenAPI document."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver, include, path, re_path
from django.views.decorators.http import require_safe
from ninja import NinjaAPI, Router
from ninja.responses import Response

from gateway_site.management_api import catalogue, errors, keys, own_key, usage
from gateway_site.management_api.backends import Backends
from gateway_site.management_api.bodies import JSONRenderer, StrictParser
from gateway_site.management_api.catalogue import Aliases, Policies
from gateway_site.management_api.ip_rules import IPRules
from gateway_site.management_api.limits import Limits
from gateway_site.management_api.people import Invitations, Memberships, Users
from gateway_site.management_api.prices import Prices
from gateway_site.management_api.resources import serve
from gateway_site.management_api.tenants import Tenants
from gateway_site.management_api.tokens import ManagementTokenAuth

PREFIX = "/manage/api/"

api = NinjaAPI(
    title="Ollama Gateway: management",
    version="1",
    description="What the pages do, for programs. Rights are those that the token's user has at that moment.",
    # The page of ninja comes from other hosts, which our content security policy does not let in; its document is
    # made anew for each question, whatever the method.
    docs_url=None,
    openapi_url=None,
    auth=ManagementTokenAuth(),
    parser=StrictParser(),
    renderer=JSONRenderer(),
    urls_namespace="management",
)
errors.install(api)

for resource in (Tenants(), Users(), Memberships(), Limits(), IPRules(), Aliases(), Policies(), Prices(), Backends()):
    router = Router(tags=[resource.path])
    serve(router, resource, ends=not isinstance(resource, Users))
    api.add_router(resource.path, router)
invited = Router(tags=["invitations"])
serve(invited, Invitations(), changes=False)
api.add_router("invitations", invited)
api.add_router("keys", keys.router)
api.add_router("default-models", catalogue.router)
api.add_router("usage", usage.router)
api.add_router("key", own_key.router)

View = Callable[..., HttpResponse]


def urls() -> list[URLPattern | URLResolver]:
    patterns, app, namespace = api.urls
    for pattern in patterns:
        pattern.callback = in_one_shape(pattern.callback)  # type: ignore[union-attr]
    own: list[Any] = [path("openapi.json", in_one_shape(document)), re_path("", in_one_shape(nothing_here))]
    return [path(PREFIX[1:], include(([*patterns, *own], app), namespace=namespace))]


@cache
def the_document() -> bytes:
    """What the API is does not change while the program runs."""
    schema = api.get_openapi_schema()
    errors.add_to_document(schema)
    return Response(schema).content


@require_safe
def document(request: HttpRequest) -> HttpResponse:
    return HttpResponse(the_document(), content_type="application/json")


def in_one_shape(view: View) -> View:
    """What ninja answers by itself, in the shape of all other errors."""

    @wraps(view, updated=())
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            response = view(request, *args, **kwargs)
        except Http404 as exc:
            return errors.answer(request, errors.problem_of(exc))
        if response.status_code == errors.MethodNotAllowed.status and "Allow" in response:
            allowed = ", ".join(sorted(part.strip() for part in response["Allow"].split(",")))
            problem = errors.MethodNotAllowed(f"Here it is {allowed}.", headers={"Allow": allowed})
            return errors.answer(request, problem)
        return response

    answer.csrf_exempt = True  # type: ignore[attr-defined]  # no cookie is looked at
    return answer


def nothing_here(request: HttpRequest) -> HttpResponse:
    raise Http404
