from typing import Any

from django.core.management.commands import migrate


class Command(migrate.Command):
    def check(self, **options: Any) -> None:
        # What the database lacks before it is migrated is no reason not to: the triggers of tables that are new, or
        # that somebody dropped, are what this command puts in place.
        super().check(**{**options, "databases": None})
