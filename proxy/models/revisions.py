"""How workers learn that the rules changed."""

from django.db import models


class ConfigRevision(models.Model):
    """One row per table that the snapshot is made of; raised by triggers of the database (proxy/triggers.py)."""

    table = models.CharField(max_length=63, primary_key=True)
    # Milliseconds of the epoch or one more than before, whichever is greater: a row that was deleted and made
    # again never shows a number that a worker has already seen.
    revision = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.table} {self.revision}"
