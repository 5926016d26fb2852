"""Forms of IP rules: whoever would shut out themselves, or who calls now, is asked first."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from proxy import lockouts
from proxy.client_address import Address, parse_address
from tenants.models import ApiKey, IPRule, Tenant


class AskingForm(forms.ModelForm):  # type: ignore[type-arg]
    """`address`: of who fills it in."""

    address: Address | None = None
    confirmed = forms.BooleanField(
        label="Save it all the same", required=False, help_text="Only asked for where the rule shuts somebody out."
    )

    def _post_clean(self) -> None:
        # After the instance has been checked, whose network is in its canonical form then.
        super()._post_clean()  # type: ignore[misc]
        if not self.errors and not self.cleaned_data.get("confirmed"):
            for warning in lockouts.of_change(self.address, added=self.instance):
                self.add_error("confirmed", ValidationError(warning, code="lockout"))


class IPRuleForm(AskingForm):
    """Of the admin."""

    class Meta:
        model = IPRule
        fields = ["cidr", "action", "expires_at", "note", "tenant", "key", "by_owners", "acts_as"]


class OwnersIPRuleForm(AskingForm):
    """For a tenant, or one of its keys. `keys`: those that are not revoked."""

    class Meta:
        model = IPRule
        fields = ["cidr", "action", "key", "expires_at", "note"]
        widgets = {"expires_at": forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")}

    def __init__(self, *args: Any, tenant: Tenant, keys: QuerySet[ApiKey], address: Address | None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.tenant, self.address = tenant, address
        choice: Any = self.fields["key"]
        choice.queryset, choice.empty_label = keys, f"All keys of {tenant}"
        choice.label, choice.required = "For", False
        if not self.is_bound or not self.data.get("asked"):
            self.fields["confirmed"].widget = forms.HiddenInput()

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        self.instance.tenant = None if cleaned.get("key") else self.tenant
        self.instance.by_owners = True
        return cleaned

    @property
    def asks(self) -> bool:
        return "confirmed" in self.errors


class AddressForm(forms.Form):
    address = forms.CharField(max_length=64, label="Test an address")

    def clean_address(self) -> Address:
        address = parse_address(self.cleaned_data["address"].strip())
        if address is None:
            raise ValidationError("Write an IP address such as 203.0.113.9.")
        return address
