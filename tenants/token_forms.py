"""The form of management tokens. It offers what the person may do; what they may is asked again at each call."""

from datetime import date, datetime, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import timezone

from tenants.forms import end_of
from tenants.management_tokens import scopes_for, tenants_for
from tenants.models import Tenant, User
from tenants.moments import LAST_DAY

# Of a token whose maker does not say otherwise.
USUAL_LIFE = timedelta(days=90)


class TokenForm(forms.Form):
    name = forms.CharField(max_length=100, help_text="What it is used for, e.g. “Terraform”.")
    scopes = forms.MultipleChoiceField(
        label="What it may be used for",
        widget=forms.CheckboxSelectMultiple,
        initial=["read"],
        help_text="It never reaches further than you do, and ends with your account.",
    )
    tenant = forms.ModelChoiceField(
        Tenant.objects.none(), required=False, empty_label="All that you reach", label="Only in this tenant"
    )
    expires_on = forms.DateField(
        label="Expires after",
        required=False,
        validators=[LAST_DAY],
        widget=forms.DateInput(attrs={"type": "date"}),
        help_text="It works until the end of this day. Empty: until it is revoked.",
    )

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        kwargs["initial"] = {"expires_on": timezone.localdate() + USUAL_LIFE, **kwargs.get("initial", {})}
        super().__init__(*args, **kwargs)
        self.fields["scopes"].choices = [(name, f"{name}: {text}") for name, text in scopes_for(user).items()]
        self.fields["tenant"].queryset = tenants_for(user)

    def clean_expires_on(self) -> date | None:
        day = self.cleaned_data["expires_on"]
        if day is not None and day < timezone.localdate():
            raise ValidationError("This day is over. Choose today or later.")
        return day

    def columns(self) -> dict[str, Any]:
        """Of ManagementToken."""
        cleaned = self.cleaned_data
        expires_at: datetime | None = end_of(cleaned["expires_on"])
        return {**{name: cleaned[name] for name in ("name", "scopes", "tenant")}, "expires_at": expires_at}
