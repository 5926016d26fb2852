from django.urls import URLPattern, path

from usage.views.controls import Names
from usage.views.one_request import Known, one_request
from usage.views.overview import usage, usage_file
from usage.views.requests import requests, requests_file, requests_rows
from usage.views.texts import stored_texts, text_of_request


def urls(known: Known, names: Names) -> list[URLPattern]:
    """`names`: of models, as suggestions."""
    return [
        path("usage/", usage, {"names": names}, name="usage"),
        path("usage/sums.csv", usage_file, {"form": "csv"}, name="usage_csv"),
        path("usage/sums.json", usage_file, {"form": "json"}, name="usage_json"),
        path("requests/", requests, {"names": names}, name="requests"),
        path("requests/rows/", requests_rows, name="requests_rows"),
        path("requests/list.csv", requests_file, {"form": "csv"}, name="requests_csv"),
        path("requests/list.json", requests_file, {"form": "json"}, name="requests_json"),
        path("texts/", stored_texts, name="texts"),
        path("requests/<uuid:pk>/text/", text_of_request, name="request_text"),
        path("requests/<uuid:pk>/", one_request, {"known": known}, name="request"),
    ]
