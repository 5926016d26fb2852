from django.apps import AppConfig
from django.db.models.signals import post_migrate


class ProxyConfig(AppConfig):
    name = "proxy"
    verbose_name = "Backends and models"

    def ready(self) -> None:
        from proxy import checks  # noqa: F401 - registers itself
        from proxy.audited import track_tables
        from proxy.triggers import install_after_migrate

        track_tables()

        # SQLite drops a table's triggers when a migration rebuilds it, so they are put back after each one.
        post_migrate.connect(install_after_migrate, sender=self)
