"""How a call is ended from elsewhere."""

from django.db import models


class CallCancellation(models.Model):
    """Somebody wants a call to end. The process that runs it learns of the row as it learns of changed rules."""

    # Without a relation: the record of the call is stored when the call has ended.
    call_id = models.CharField(max_length=32, primary_key=True)
    by = models.CharField(max_length=200, help_text="Who asked for it.")
    requested_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        # The recent ones are read with each change, the old ones are deleted with each new one.
        indexes = [models.Index(fields=["requested_at"], name="cancellation_recent")]

    def __str__(self) -> str:
        return f"{self.call_id} by {self.by}"
