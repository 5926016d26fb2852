"""What people fill in. Choices are limited to what they may choose (T6)."""

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from typing import Any

from django import forms
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.utils import timezone

from tenants.authority import BOUNDS, AreWithin, bounded, may_bound, may_undo
from tenants.models import ApiKey, Authority, LatencyClass, Membership, Role, Tenant, User
from tenants.models.people import WEIGHTS
from tenants.moments import LAST_DAY

# Of the key before, after a rotation.
OVERLAPS = {
    "0": ("at once: the old secret stops now", timedelta()),
    "1h": ("for an hour", timedelta(hours=1)),
    "1d": ("for a day", timedelta(days=1)),
    "7d": ("for a week", timedelta(days=7)),
    "30d": ("for 30 days", timedelta(days=30)),
}


class KeyForm(forms.Form):
    """`names`: the models to choose from. `tenants`: where the person may have keys; `owned`: where also for others."""

    name = forms.CharField(max_length=100, help_text="What it is used for, e.g. “CI of the web team”.")
    tenant = forms.ModelChoiceField(Tenant.objects.none(), empty_label=None)
    whose = forms.ChoiceField(
        choices=[
            ("mine", "Mine"),
            ("service", "A service key of the tenant, for a program"),
            ("person", "Somebody else's"),
        ],
        widget=forms.RadioSelect,
        initial="mine",
        help_text="Service keys go on working when people leave the tenant.",
    )
    person = forms.ModelChoiceField(
        User.objects.none(),
        label="Whose, if somebody else's",
        required=False,
        help_text="You see the secret once and hand it over; rotating the key gives it one that only its owner knows.",
    )
    expires_on = forms.DateField(
        label="Expires after",
        required=False,
        validators=[LAST_DAY],
        widget=forms.DateInput(attrs={"type": "date"}),
        help_text="It works until the end of this day. Empty: until it is revoked.",
    )
    models = forms.MultipleChoiceField(
        label="Only these models",
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None ticked: all models of the gateway.",
    )
    patterns = forms.CharField(
        label="Further names or patterns",
        required=False,
        max_length=2000,
        help_text="Separated by commas, e.g. <code>qwen3:*, mistral</code>. For models that come later.",
    )
    max_output_tokens = forms.IntegerField(
        label="Most tokens of one answer",
        required=False,
        min_value=1,
        max_value=2**31 - 1,
        help_text="Empty: the gateway's maximum.",
    )
    latency_class = forms.ChoiceField(
        label="Kind of work",
        required=False,
        choices=[
            ("", "As the tenant"),
            (LatencyClass.INTERACTIVE, "Interactive: somebody waits for the answers"),
            (LatencyClass.BATCH, "Batch: it may wait while others do not"),
        ],
    )
    weight = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=10_000,
        validators=WEIGHTS,
        help_text="Its share of what the tenant gets, compared with the tenant's other keys. Empty: 100.",
    )
    may_be_in_path = forms.BooleanField(
        label="Accept it in the address",
        required=False,
        help_text="As /k/KEY/…, for programs that can send no header, such as Ollama's own command. "
        "Addresses end up in logs and histories.",
    )

    # What the rights of superusers on a key are bounded by.
    BOUNDS = ("models", "patterns", "expires_on")

    def __init__(
        self,
        *args: Any,
        names: Iterable[str],
        tenants: Any,
        owned: Any,
        key: ApiKey | None = None,
        is_bound: bool = False,
        by: Authority = Authority.PERSON,
        are_within: AreWithin,
        **kwargs: Any,
    ) -> None:
        """`is_bound`: which models the key is for, and until when, is not for this person to change. `by`: their
        authority over a key that there is."""
        self.key = key
        self.by = by
        self.are_within = are_within
        self.names = sorted({*names, *(name for name in (key.models_allowed if key else ()) if not _is_pattern(name))})
        if key is not None:
            kwargs["initial"] = {**_initial(key), **kwargs.get("initial", {})}
        super().__init__(*args, **kwargs)
        self.fields["models"].choices = [(name, name) for name in self.names]
        if not self.names:
            del self.fields["models"]
        self.fields["tenant"].queryset = tenants
        self.owned = owned
        if key is not None:
            del self.fields["tenant"], self.fields["whose"], self.fields["person"]
            if by == Authority.PERSON:
                del self.fields["weight"]
            self._say_what_others_set(key)
            if is_bound:
                for name in self.BOUNDS:
                    self.fields.pop(name, None)
            return
        found = list(tenants[:2])
        if len(found) == 1:
            self.only_tenant = found[0]
            del self.fields["tenant"]
        self.fields["person"].queryset = (
            User.objects.filter(
                is_active=True, memberships__tenant__in=owned, memberships__role__in=(Role.OWNER, Role.MEMBER)
            )
            .distinct()
            .order_by("username")
        )
        if not owned.exists():
            del self.fields["whose"], self.fields["person"], self.fields["weight"]

    def _say_what_others_set(self, key: ApiKey) -> None:
        """Where a bound was set by somebody above."""
        others = [name for name in BOUNDS if getattr(key, name) and not may_undo(self.by, getattr(key, f"{name}_by"))]
        for column in others:
            whose = Authority(getattr(key, f"{column}_by")).label.capitalize()
            if column == "max_output_tokens":
                self.fields[column].help_text = f"{whose} set at most {key.max_output_tokens}; you may only lower it."
            elif column == "expires_at":
                self.fields["expires_on"].help_text = f"{whose} set this day; you may only choose an earlier one."
            else:
                advice = f"{whose} set which models it is for; you may only take some away."
                self.fields["models" if "models" in self.fields else "patterns"].help_text = advice

    def clean_expires_on(self) -> date | None:
        day = self.cleaned_data["expires_on"]
        if day is not None and day < timezone.localdate() and "expires_on" in self.changed_data:
            raise ValidationError("This day is over. Choose today or later.")
        return day

    def clean_patterns(self) -> list[str]:
        return [part.strip() for part in self.cleaned_data["patterns"].split(",") if part.strip()]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if "tenant" not in self.fields and self.key is None:
            cleaned["tenant"] = self.only_tenant
        tenant = cleaned.get("tenant")
        if cleaned.get("whose") == "service" and tenant and not self.owned.filter(pk=tenant.pk).exists():
            raise ValidationError({"whose": f"Only owners of {tenant} make service keys."})
        if cleaned.get("whose") == "person" and tenant:
            self._clean_person(cleaned.get("person"), tenant)
        if self.key is not None and not self.errors:
            self._clean_bounds(self.key)
        return cleaned

    def _clean_bounds(self, key: ApiKey) -> None:
        for column, value in self._bounds().items():
            if may_bound(self.by, key, column, value, self.are_within):
                continue
            whose = Authority(getattr(key, f"{column}_by")).label.capitalize()
            if column == "max_output_tokens":
                self.add_error(column, f"{whose} set at most {key.max_output_tokens}. Give that or less.")
            elif column == "expires_at":
                last = _last_day(key)
                self.add_error("expires_on", f"{whose} set {last}. Give that or an earlier day, or ask them for more.")
            else:
                names = ", ".join(key.models_allowed)
                self.add_error(
                    "models" if "models" in self.fields else "patterns",
                    f"{whose} set that it is for {names}. Choose some of these, or ask them for others.",
                )

    def _bounds(self) -> dict[str, Any]:
        """Of authority.BOUNDS, what the form says. What was not touched stays to the second and the letter."""
        cleaned = self.cleaned_data
        found = {"max_output_tokens": cleaned["max_output_tokens"]}
        if "patterns" not in self.fields:
            return found
        if self.key is None or {"models", "patterns"} & {*self.changed_data}:
            found["models_allowed"] = list(dict.fromkeys([*cleaned.get("models", []), *cleaned["patterns"]]))
        if self.key is None or "expires_on" in self.changed_data:
            found["expires_at"] = end_of(cleaned["expires_on"])
        return found

    def _clean_person(self, person: User | None, tenant: Tenant) -> None:
        if not self.owned.filter(pk=tenant.pk).exists():
            raise ValidationError({"whose": f"Only owners of {tenant} make keys for others."})
        if person is None:
            raise ValidationError({"person": "Choose whose key it is."})
        roles = Membership.objects.filter(tenant=tenant, user=person).exclude(role=Role.VIEWER)
        if not roles.exists():
            raise ValidationError({"person": f"{person} has no keys in {tenant}: invite them, or change their role."})

    def columns(self) -> dict[str, Any]:
        """Of ApiKey."""
        cleaned = self.cleaned_data
        columns = {name: cleaned[name] for name in ("name", "latency_class", "may_be_in_path")}
        for name, value in self._bounds().items():
            columns |= (
                {name: value, f"{name}_by": self.by} if self.key is None else bounded(self.key, name, value, self.by)
            )
        if "weight" in self.fields:
            columns["weight"] = cleaned["weight"]
        return columns


class RotationForm(forms.Form):
    overlap = forms.ChoiceField(
        label="The old secret goes on working",
        choices=[(name, label) for name, (label, _) in OVERLAPS.items()],
        initial="1d",
        widget=forms.RadioSelect,
        help_text="Long enough to put the new one everywhere. Its last use is shown on the page of the key.",
    )
    version = forms.CharField(required=False, max_length=40, widget=forms.HiddenInput)

    @property
    def chosen(self) -> timedelta:
        return OVERLAPS[self.cleaned_data["overlap"]][1]


class InvitationForm(forms.Form):
    email = forms.EmailField(label="E-mail address", max_length=254)
    tenant = forms.ModelChoiceField(Tenant.objects.none(), empty_label=None)
    role = forms.ChoiceField(choices=Role.choices, initial=Role.MEMBER, widget=forms.RadioSelect)

    def __init__(self, *args: Any, tenants: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["tenant"].queryset = tenants


class NewAccountForm(forms.ModelForm):
    """How somebody who was invited, or the first of all, makes their account."""

    password1 = forms.CharField(
        label="Password", widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}), strip=False
    )
    password2 = forms.CharField(
        label="Password again", widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}), strip=False
    )

    class Meta:
        model = User
        fields = ["username", "first_name", "last_name"]
        help_texts = {"username": "Letters, digits and @ . + - _"}
        widgets = {"username": forms.TextInput(attrs={"autocomplete": "username"})}

    def clean_username(self) -> str:
        name = self.cleaned_data["username"]
        if User.objects.filter(username__iexact=name).exists():
            raise ValidationError("Somebody has this name already.")
        return name

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        first, second = cleaned.get("password1"), cleaned.get("password2")
        if first and second and first != second:
            raise ValidationError({"password2": "The two passwords are not the same."})
        return cleaned

    def _post_clean(self) -> None:
        # After the instance has its name and address, which the password must not resemble.
        super()._post_clean()
        if password := self.cleaned_data.get("password1"):
            try:
                validate_password(password, self.instance)
            except ValidationError as exc:
                self.add_error("password1", exc)

    def save(self, commit: bool = True) -> User:
        user = super().save(commit=False)
        user.set_password(self.cleaned_data["password1"])
        if commit:
            user.save()
        return user


def _initial(key: ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "expires_on": _last_day(key),
        "models": [name for name in key.models_allowed if not _is_pattern(name)],
        "patterns": ", ".join(name for name in key.models_allowed if _is_pattern(name)),
        "max_output_tokens": key.max_output_tokens,
        "latency_class": key.latency_class,
        "weight": key.weight,
        "may_be_in_path": key.may_be_in_path,
    }


def _last_day(key: ApiKey) -> date | None:
    return timezone.localdate(key.expires_at - timedelta(microseconds=1)) if key.expires_at else None


def _is_pattern(name: str) -> bool:
    return any(char in name for char in "*?[")


def end_of(day: date | None) -> datetime | None:
    """Midnight after a day of the reporting zone."""
    return timezone.make_aware(datetime.combine(day + timedelta(days=1), time.min)) if day else None
