from django.apps import AppConfig
from django.db.models.signals import post_delete, post_save


class TenantsConfig(AppConfig):
    name = "tenants"
    verbose_name = "Tenants and keys"

    def ready(self) -> None:
        from tenants.announcements import announce_row
        from tenants.audited import track_tables
        from tenants.models import ApiKey, IPRule, Limit, Tenant, User

        track_tables()

        for model in (ApiKey, IPRule, Limit, Tenant, User):
            post_save.connect(announce_row, sender=model, dispatch_uid=f"announce {model.__name__}")
            post_delete.connect(announce_row, sender=model, dispatch_uid=f"announce deleted {model.__name__}")
