from django.apps import AppConfig


class UsageConfig(AppConfig):
    name = "usage"
    verbose_name = "Usage and prices"

    def ready(self) -> None:
        from tenants import money
        from tenants.auditing import track
        from usage.models import Price

        amounts = [column.name for column in Price._meta.concrete_fields if column.name.endswith("_nano")]
        track(Price, words={name: lambda row, name=name: money.shown(getattr(row, name)) for name in amounts})
