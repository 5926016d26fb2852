"""Limits as people write them: administrators for anybody, owners within their tenant."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Q

from tenants import money
from tenants.models import ApiKey, Limit, Membership, Role, Tenant, User

# Keys to choose from, the newest; each key's page leads to a limit of it besides.
MOST_KEYS = 300


class AmountsForm(forms.ModelForm):
    """Amounts of a cost are written in units of the currency, as at the shell."""

    amount = forms.CharField(
        max_length=40, help_text="A whole number; a cost in units of the currency, e.g. 25.50. 0 refuses everything."
    )
    override_amount = forms.CharField(
        label="Raised amount",
        max_length=40,
        required=False,
        help_text="In place of the amount, until the moment below. Written like the amount.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk and self.instance.metric == Limit.Metric.COST:
            for name in ("amount", "override_amount"):
                value = getattr(self.instance, name)
                self.initial[name] = "" if value is None else money.shown(value)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        metric = cleaned.get("metric") or self.instance.metric
        for name in ("amount", "override_amount"):
            if name in cleaned:
                try:
                    cleaned[name] = _quantity(cleaned[name], metric)
                except ValueError as exc:
                    self.add_error(name, str(exc))
        return cleaned

    def _update_errors(self, errors: ValidationError) -> None:
        """Of the model: while an amount cannot be read, nothing is said of what raises it."""
        if {"amount", "override_amount"} & {*self.errors} and hasattr(errors, "error_dict"):
            errors.error_dict.pop("override_amount", None)
        super()._update_errors(errors)  # type: ignore[misc]


def _quantity(text: str, metric: str) -> int | None:
    """None: nothing was written. Raises ValueError saying what to write."""
    if not text.strip():
        return None
    amount = money.to_nano(text)
    if metric != Limit.Metric.COST:
        amount, decimals = divmod(amount, money.ONE)
        if decimals:
            raise ValueError("Write a whole number.")
    return amount


class OwnersLimitForm(AmountsForm):
    """What the owners of a tenant set for it, its people and keys. Whom a limit is for, of what and in which window
    does not change: its counter would begin anew."""

    whom = forms.ChoiceField(label="For whom")
    mode = forms.ChoiceField(
        label="When it is used up",
        choices=[(Limit.Mode.ENFORCE, "Refuse further calls"), (Limit.Mode.SHADOW, "Only count, refuse nothing")],
        widget=forms.RadioSelect,
        initial=Limit.Mode.ENFORCE,
    )

    class Meta:
        model = Limit
        fields = [
            "metric", "amount", "window", "window_seconds", "model", "mode", "alert", "override_amount",
            "override_until",
        ]  # fmt: skip
        labels = {
            "metric": "Of what",
            "window": "In which time",
            "window_seconds": "How many seconds",
            "model": "Only of this model",
            "alert": "Tell us at 80 % and 100 %",
            "override_until": "Raised until",
        }
        help_texts = {
            "window": "Concurrent calls have none.",
            "window_seconds": "Of a rolling window in seconds, and only there.",
            "model": "Its whole name, e.g. llama3.2. Empty: all models together.",
            "alert": "By mail to the person and the owners, and by webhook. For calendar hours, days and months.",
        }
        widgets = {
            "override_until": forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        }

    field_order = ["whom"]

    def __init__(self, *args: Any, tenant: Tenant, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tenant = tenant
        if self.instance.pk:
            for name in ("whom", "metric", "window", "window_seconds", "model"):
                del self.fields[name]
        else:
            self.fields["whom"].choices = list(whom_to_limit(tenant, self.initial.get("whom", "")))

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        if not self.instance.pk and (whom := cleaned.get("whom")):
            kind, _, number = whom.partition(":")
            self.instance.scope = kind
            setattr(self.instance, f"{kind}_id", int(number))
        self.instance.managed_by = self.tenant
        return cleaned


def whom_to_limit(tenant: Tenant, wanted: str = "") -> Iterable[tuple[str, Any]]:
    """Choices of a select, in groups: `tenant:3`, `user:5`, `key:7`."""
    yield "The tenant", [(f"tenant:{tenant.pk}", f"{tenant} as a whole")]
    # Those who may have keys here; what they are in other tenants does not matter.
    inside = Membership.objects.filter(tenant=tenant).exclude(role=Role.VIEWER)
    people = User.objects.filter(pk__in=inside.values("user"))
    yield (
        "A person, with all keys of theirs in this tenant",
        [(f"user:{user.pk}", str(user)) for user in people.order_by("username")],
    )
    keys = ApiKey.objects.filter(tenant=tenant, revoked_at=None).order_by("-created_at")
    some = list(keys[:MOST_KEYS])
    if wanted.startswith("key:") and not any(f"key:{key.pk}" == wanted for key in some):
        some += keys.filter(pk=int(wanted.removeprefix("key:") or 0))
    yield "A key", [(f"key:{key.pk}", str(key)) for key in some]


def limits_seen(user: User, tenant: Tenant, role: str) -> Any:
    """The limits that hold for somebody in a tenant: for owners and viewers all of it, for members their own."""
    if role == Role.MEMBER:
        people, keys = Q(user=user), Q(key__user=user)
    else:
        people, keys = Q(user__memberships__tenant=tenant), Q()
    within = Q(managed_by=None) | Q(managed_by=tenant)
    return (
        Limit.objects.filter(
            Q(scope__in=("default", "address"))
            | Q(scope="tenant", tenant=tenant)
            | (Q(scope="user") & people & within)
            | (Q(scope="key", key__tenant=tenant, key__revoked_at=None) & keys)
        )
        .distinct()
        .select_related("tenant", "user", "key", "managed_by")
        .order_by("id")
    )
