from django.contrib.admin.apps import AdminConfig


class GatewayAdminConfig(AdminConfig):
    default_site = "gateway_site.admin_site.GatewayAdminSite"

    def ready(self) -> None:
        from gateway_site import checks  # noqa: F401 - registers itself

        super().ready()
