"""Examples of pages.yaml; scripts/audit runs them."""

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.csrf import csrf_exempt


def shown(name, text):
    # ruleid: markup-is-escaped
    yield mark_safe(name)
    # ruleid: markup-is-escaped
    yield SafeString(name)
    # ruleid: markup-is-escaped
    yield format_html(f"<b>{name}</b>")
    # ruleid: markup-is-escaped
    yield format_html("<b>" + name)
    # ruleid: markup-is-escaped
    yield HttpResponse(f"<b>{name}</b>")
    # ok: markup-is-escaped
    yield HttpResponse(f"No page {name}", content_type="text/plain; charset=utf-8", status=400)
    # ok: markup-is-escaped
    yield format_html("<b>{}</b>", name)


# ok: markup-is-escaped
def badge(text: str) -> SafeString:
    return format_html("<b>{}</b>", text)


def page(request, pk):
    # ruleid: pages-begin-with-what-may-be-seen
    get_object_or_404(ApiKey, pk=pk)
    # ruleid: pages-begin-with-what-may-be-seen
    ApiKey.objects.get(pk=pk)
    # ok: pages-begin-with-what-may-be-seen
    get_object_or_404(ApiKey.objects.for_user(request.user), pk=pk)
    # ok: pages-begin-with-what-may-be-seen
    return get_object_or_404(rows, pk=pk)


# ruleid: forms-are-protected
@csrf_exempt
def change(request):
    # ruleid: forms-are-protected
    change.csrf_exempt = True


# ok: forms-are-protected
def look(request):
    return request.user
