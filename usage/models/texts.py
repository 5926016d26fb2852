"""What was asked and answered, of tenants that have it stored."""

from django.db import models

from tenants.models import ApiKey, Tenant, User
from usage.models.records import reference

PROMPT_CHARACTERS = 1000
ANSWER_CHARACTERS = 200


class StoredText(models.Model):
    """A table of its own: records live for months and are seen by many, texts for days and by few (usage/texts.py).

    Redacted and cut before it is written. Written by the ledger alone; no form, and no admin, shows it.
    """

    record_id = models.UUIDField(primary_key=True, help_text="Of the record: our request id.")
    at = models.DateTimeField(help_text="When the call was admitted.")
    tenant = reference(Tenant)
    user = reference(User, null=True)
    api_key = reference(ApiKey)
    model = models.CharField("model served", max_length=500)
    prompt = models.CharField(max_length=PROMPT_CHARACTERS, blank=True)
    answer = models.CharField(max_length=ANSWER_CHARACTERS, blank=True)

    class Meta:
        default_permissions = ()
        permissions = [("read_storedtext", "Can read stored prompts and answers of others")]
        # The newest of a tenant, of a person, of a key; those that are too old.
        indexes = [
            models.Index(fields=["tenant", "-at"], name="text_of_tenant"),
            models.Index(fields=["user", "-at"], name="text_of_user"),
            models.Index(fields=["api_key", "-at"], name="text_of_key"),
            models.Index(fields=["at"], name="text_by_age"),
        ]

    def __str__(self) -> str:
        return f"text of the request {self.record_id}"
