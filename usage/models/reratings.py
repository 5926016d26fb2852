"""That records were priced anew: what for, and what came of it."""

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F, Q

from tenants.auditing import Audited


class Rerating(Audited):
    """One run. It commits batch by batch: what was interrupted has no end, and is simply run again."""

    first = models.DateField("from", help_text="The first day, of the reporting zone.")
    last = models.DateField("to", help_text="The last day, of the reporting zone.")
    model = models.CharField(max_length=500, blank=True, help_text="Only calls of this model. Empty: of all.")
    started_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True, editable=False)
    records = models.PositiveBigIntegerField(default=0, editable=False)
    changed = models.PositiveBigIntegerField(default=0, editable=False)
    before_nano = models.BigIntegerField("cost before", default=0, editable=False)
    after_nano = models.BigIntegerField("cost after", default=0, editable=False)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(first__lte=F("last")), name="rerating_ends_after_it_begins")]

    def __str__(self) -> str:
        return f"{self.first} to {self.last}{f', {self.model}' if self.model else ''}"

    def clean(self) -> None:
        if self.first and self.last and self.first > self.last:
            raise ValidationError({"last": "The last day comes after the first."})
