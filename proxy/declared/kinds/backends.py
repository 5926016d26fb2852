"""The Ollama servers, and the secrets that the gateway shows them."""

from collections.abc import Iterable
from typing import Any

from django.core.exceptions import ValidationError
from django.forms import modelform_factory

from proxy.admin.backends import BackendForm
from proxy.credentials import CannotUnseal, unseal
from proxy.declared.fields import Field, Wrong
from proxy.declared.kinds.base import Entry, Kind, columns, refuse_archived
from proxy.declared.world import World
from proxy.models import Backend


class Backends(Kind):
    section, noun, model, required = "backends", "backend", Backend, ("name",)
    removal = "archive"
    SECRETS = ("credential", "client_key", "proxy_credential")
    secrets = tuple(f"{name}_{where}" for name in SECRETS for where in ("env", "file"))

    def make_fields(self) -> Iterable[Field]:
        return columns(
            Backend, "name", "url", "enabled", "slots", "context_length", "transport", "ca_certificates",
            "credential_header", "client_certificate", "proxy_url", "http2",
        )  # fmt: skip

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._given: dict[str, str] = {}

    def queryset(self) -> Iterable[Any]:
        return self.world.backends.values()

    def fill(self, row: Backend, entry: Entry) -> None:
        refuse_archived(self, row, entry)
        if row.set_by_environment and entry.values.get("url", row.url) != row.url:
            raise Wrong("url: the environment owns this one (OLLAMA_HOST and its kin).", entry.line_of("url"))
        super().fill(row, entry)
        self._given = {}
        for name in self.SECRETS:
            given = [f"{name}_{where}" for where in ("env", "file") if f"{name}_{where}" in entry.nodes]
            if len(given) > 1:
                raise Wrong(f"give one of {', '.join(given)}.", entry.line_of(given[1]))
            if given:
                try:
                    secret = self.world.secret_of(entry.nodes[given[0]], in_file=given[0].endswith("_file"))
                except Wrong as exc:
                    raise Wrong(f"{given[0]}: {exc}", entry.line_of(given[0])) from None
                if secret != _unsealed(getattr(row, f"{name}_encrypted")):
                    entry.notes[name] = "replaced" if getattr(row, f"{name}_encrypted") else "set"
                self._given[name] = secret

    def check(self, row: Backend, entry: Entry) -> None:
        """By the admin's own form, which has the last word on what may be a backend."""
        kept = Backend.objects.filter(pk=row.pk).first() or Backend()
        names = [made.attribute for made in self.fields.values()]
        data = {name: getattr(row, name) for name in names}
        forget = bool(kept.credential_encrypted) and not row.credential_header
        form = _form_with(names)({**data, **self._given, "forget_credential": forget}, instance=kept)
        if not form.is_valid():
            raise ValidationError({name: [str(text) for text in found] for name, found in form.errors.items()})
        form.save(commit=False)
        # Sealing makes something else of the same secret each time.
        sealed = [f"{name}_encrypted" for name in self.SECRETS if name in entry.notes or not self._is_kept(form, name)]
        for name in [*names, *sealed]:
            setattr(row, name, getattr(form.instance, name))

    @staticmethod
    def _is_kept(form: Any, name: str) -> bool:
        return bool(getattr(form.instance, f"{name}_encrypted"))

    def save(self, row: Backend, entry: Entry) -> None:
        super().save(row, entry)
        self.world.backends[row.name] = row

    def may_remove(self, row: Backend) -> bool:
        return row.archived_at is None and not row.set_by_environment

    def remove(self, row: Backend) -> None:
        row.archive()

    def is_exported(self, row: Backend) -> bool:
        return row.archived_at is None and not row.set_by_environment


def _form_with(names: list[str]) -> Any:
    return modelform_factory(Backend, form=BackendForm, fields=names)


def _unsealed(sealed: bytes | memoryview | None) -> str | None:
    try:
        return unseal(sealed) if sealed else None
    except CannotUnseal:
        return None
