"""The part of a backend's form that says by which way it is reached, and how the gateway shows who it is."""

import ssl
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from proxy.backend_url import normalise_backend_url
from proxy.credentials import CannotUnseal, seal, unseal
from proxy.fleet.tls import load_pair
from proxy.models import Backend
from proxy.resolution import refuse_where_it_leads

WAY_FIELDS = ["proxy_url", "proxy_credential", "client_certificate", "has_client_key", "client_key", "http2"]
# Write-only.
SECRET_WAY_FIELDS = {"proxy_credential", "client_key"}


class WayForm(forms.ModelForm):  # type: ignore[type-arg]
    proxy_credential = forms.CharField(
        required=False,
        max_length=1000,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="user:password. Kept encrypted and never shown. Empty: leave it as it is; it goes with the proxy.",
    )
    client_key = forms.CharField(
        required=False,
        max_length=20_000,
        widget=forms.Textarea(attrs={"rows": 4, "autocomplete": "off"}),
        help_text="PEM, without a password. Kept encrypted and never shown. Empty: leave it as it is.",
    )

    class Meta:
        model = Backend
        fields = ["proxy_url", "client_certificate", "http2"]

    def clean_proxy_url(self) -> str:
        url = self.cleaned_data["proxy_url"].strip()
        if not url:
            return ""
        try:
            url = normalise_backend_url(url)
            refuse_where_it_leads(url)
        except ValueError as exc:
            raise ValidationError(str(exc)) from None
        return url

    def clean_proxy_credential(self) -> str:
        value: str = self.cleaned_data["proxy_credential"]
        if value and (":" not in value or not value.isprintable()):
            raise ValidationError("Write user:password.")
        return value

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        certificate, key = cleaned.get("client_certificate", "").strip(), cleaned.get("client_key", "").strip()
        if key and not certificate:
            raise ValidationError({"client_certificate": "A key needs its certificate."})
        if certificate:
            try:
                load_pair(ssl.create_default_context(), certificate, key or self._kept_key())
            except (ssl.SSLError, ValueError):
                message = "Paste the certificate and its key in PEM form; they must belong together."
                raise ValidationError({"client_certificate": message}) from None
        if cleaned.get("proxy_credential") and not cleaned.get("proxy_url", True):
            raise ValidationError({"proxy_url": "Name the proxy that the credential is for."})
        return cleaned

    def _kept_key(self) -> str:
        sealed = self.instance.client_key_encrypted
        try:
            return unseal(sealed) if sealed else ""
        except CannotUnseal:
            return ""

    def save(self, commit: bool = True) -> Backend:
        backend, data = self.instance, self.cleaned_data
        if data["client_key"].strip():
            backend.client_key_encrypted = seal(data["client_key"].strip())
        elif not data["client_certificate"].strip():
            backend.client_key_encrypted = None
        if data["proxy_credential"]:
            backend.proxy_credential_encrypted = seal(data["proxy_credential"])
        elif not data["proxy_url"]:
            backend.proxy_credential_encrypted = None
        saved: Backend = super().save(commit)
        return saved
