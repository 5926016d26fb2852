"""What was brought along from another proxy."""

from django.db import models


class ConfigImport(models.Model):
    """What the reading of one config.json has made, so that the next one changes that and nothing else."""

    file = models.CharField(max_length=500, unique=True)
    # Kind → what it is in the file, without secrets → primary key of the row.
    made = models.JSONField(default=dict)
    # Labels of the rows that the file no longer named, and that come back when it does: "key 3", "backend 1".
    taken_back = models.JSONField(default=list)
    at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return self.file
