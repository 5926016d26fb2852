from django.conf import settings
from django.contrib import admin
from django.urls import path

from gateway_site import health
from tenants.sign_in import limited_login

urlpatterns = [
    path("admin/login/", limited_login(admin.site.login)),
    path("admin/", admin.site.urls),
    path("livez", health.livez),
    path("readyz", health.readyz),
    path(settings.METRICS_PATH[1:], health.metrics),
]
