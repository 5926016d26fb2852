"""What is asked for in the first run."""

from typing import Any

from django import forms

from proxy.models import Backend
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


class FirstKeyForm(forms.Form):
    tenant = forms.ModelChoiceField(Tenant.objects.none(), empty_label=None)
    name = forms.CharField(max_length=100, initial="first key", help_text="What it is used for.")

    def __init__(self, *args: Any, tenants: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if tenants.count() > 1:
            self.fields["tenant"].queryset = tenants  # type: ignore[attr-defined]
        else:  # theirs, or the one that is made for them
            del self.fields["tenant"]
