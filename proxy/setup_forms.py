"""What is asked for in the first run."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from proxy.backend_url import normalise_backend_url
from proxy.models import Backend
from proxy.own_listeners import address_of_a_backend
from tenants.forms import NewAccountForm
from tenants.models import Tenant, User


class FirstAccountForm(NewAccountForm):
    tenant = forms.CharField(
        label="Your team or organisation", max_length=100, initial="default", help_text="Keys and usage belong to it."
    )

    class Meta(NewAccountForm.Meta):
        model = User
        fields = ["username", "email"]
        help_texts = {**NewAccountForm.Meta.help_texts, "email": "For a new password, should you forget yours."}


class FirstBackendForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = Backend
        fields = ["name", "url", "slots"]
        labels = {"url": "Address", "slots": "Calls at a time per model"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.set_by_environment:
            for name in ("name", "url"):
                self.fields[name].disabled = True
            self.fields["url"].help_text = "Set by the environment (OLLAMA_HOST and its kin)."

    def clean_url(self) -> str:
        url = address_of_a_backend(self.cleaned_data["url"])
        if self.instance.credential_encrypted and url != normalise_backend_url(self.initial["url"]):
            # Else a server of anybody's could be told it; the form in the admin asks for it anew.
            raise ValidationError("This backend has a credential, which is for this address. Change it in the admin.")
        return url


class FirstKeyForm(forms.Form):
    tenant = forms.ModelChoiceField(Tenant.objects.none(), empty_label=None)
    name = forms.CharField(max_length=100, initial="first key", help_text="What it is used for.")

    def __init__(self, *args: Any, tenants: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if tenants.count() > 1:
            self.fields["tenant"].queryset = tenants  # type: ignore[attr-defined]
        else:  # theirs, or the one that is made for them
            del self.fields["tenant"]
