from django.apps import AppConfig


class UsageConfig(AppConfig):
    name = "usage"
    verbose_name = "Usage and prices"

    def ready(self) -> None:
        from tenants import money
        from tenants.auditing import track
        from usage.models import Price, Rerating

        for model in (Price, Rerating):
            amounts = [column.name for column in model._meta.concrete_fields if column.name.endswith("_nano")]
            track(model, words={name: lambda row, name=name: money.shown(getattr(row, name)) for name in amounts})
