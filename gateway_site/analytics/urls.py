from django.urls import URLPattern, path

from gateway_site.analytics import views


def urls() -> list[URLPattern]:
    """The paths are those of another proxy, which is why they end in no slash."""
    return [
        path("analytics", views.analytics, name="analytics"),
        path("analytics/stats", views.stats, name="analytics_stats"),
        path("analytics/search", views.search, name="analytics_search"),
        path("analytics/export", views.export_requests, name="analytics_export"),
        path("test", views.test, name="connectivity_test"),
    ]
