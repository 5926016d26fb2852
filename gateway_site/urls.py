from functools import partial

from django.conf import settings
from django.contrib import admin
from django.urls import include, path

from gateway_site import analytics, counters, error_pages, health
from gateway_site.management_api import api as management_api
from gateway_site.management_api import config_paths
from proxy import (
    explain_pages,
    ip_rule_pages,
    key_pages,
    limit_pages,
    model_pages,
    playground_pages,
    setup_pages,
    webhook_pages,
)
from proxy.limits.touched import touched
from proxy.live.views import live
from proxy.model_names import are_within
from proxy.record_errors import error_words
from tenants import sign_in
from tenants.urls import urls as people_and_keys
from tenants.views.keys import Known
from usage.urls import urls as usage_pages
from usage.views.home import home
from usage.views.one_request import Known as KnownOfRequests

handler400 = error_pages.bad_request
handler403 = error_pages.forbidden
handler404 = error_pages.not_found
handler500 = error_pages.server_error

known = Known(
    key_pages.model_names, key_pages.example_for, partial(key_pages.facts_of, count=counters.counted), are_within
)
bars_of = partial(limit_pages.bars_of, count=counters.counted)

urlpatterns = [
    path("livez", health.livez),
    path("readyz", health.readyz),
    path(settings.METRICS_PATH[1:], health.metrics),
    path("", home, {"bars_of": bars_of}, name="home"),
    *usage_pages(KnownOfRequests(counters.limits_of_key, touched, error_words), key_pages.model_names),
    path("live/", live, name="live"),
    *model_pages.urls(),
    *playground_pages.urls(),
    *people_and_keys(known),
    *setup_pages.urls(),
    *limit_pages.urls(counters.counted),
    *webhook_pages.urls(),
    *explain_pages.urls(counters.runtime),
    *ip_rule_pages.urls(),
    *management_api.urls(),
    *config_paths.urls(),
    *analytics.urls(),
    path("admin/login/", sign_in.admin_login),
    path("admin/", admin.site.urls),
    *sign_in.urlpatterns,
    path("account/", include("allauth.urls")),
]
