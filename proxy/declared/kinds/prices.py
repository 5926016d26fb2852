"""What models cost."""

from collections.abc import Hashable, Iterable
from datetime import datetime

from django.utils import timezone

from proxy.declared.fields import Field, Wrong
from proxy.declared.kinds.base import Entry, Kind, Plain, columns
from proxy.declared.world import World
from proxy.model_names import canonical_pattern
from usage.models import Price


class Prices(Kind):
    """A price in force is not changed: calls of the past point at it. Another one begins now."""

    section, noun, model, required = "prices", "price", Price, ("model",)
    PARTS = {
        "input": "input_nano", "output": "output_nano", "gpu_second": "gpu_second_nano", "kwh": "kwh_nano",
        "watts": "watts",
    }  # fmt: skip

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.now: datetime = timezone.now()

    def make_fields(self) -> Iterable[Field]:
        yield from columns(Price, "model")
        yield Field("backend", "backend", self.world.backend, str, "", "")
        yield from columns(Price, "input_nano", "output_nano", "gpu_second_nano", "kwh_nano", "watts", "valid_from")

    def load(self) -> None:
        """The prices in force and those to come, not those that were replaced."""
        for row in Price.objects.order_by("valid_from", "pk"):
            self.rows[self.identity(row)] = row

    def identity(self, row: Price) -> Hashable:
        later = row.valid_from if row.valid_from > self.now else None
        return (canonical_pattern(row.model), row.backend, later)

    def find(self, entry: Entry) -> Price | None:
        new = Price(valid_from=self.now)
        self.fill(new, entry)
        found: Price | None = self.rows.get(self.identity(new))
        if found is None or found.valid_from > self.now:
            return found
        same = self._amounts(new) == self._amounts(found)
        if "valid_from" in entry.values and not (same and new.valid_from == found.valid_from):
            raise Wrong(
                "valid_from: a price is in force, which is not changed. Leave valid_from out, and another begins now; "
                "or name a later moment.",
                entry.line_of("valid_from"),
            )
        return found if same else None

    def fill(self, row: Price, entry: Entry) -> None:
        values = {**entry.values, "model": canonical_pattern(entry.values["model"])}
        if row.pk is None:
            row.valid_from = self.now
            self.set(row, values)
            if (replaced := self.replaced_by(row)) is not None:
                for name, part in self.PARTS.items():
                    if name not in values:
                        setattr(row, part, getattr(replaced, part))
        else:
            # One in force is found only where it says the same.
            self.set(row, values)

    def _amounts(self, row: Price) -> tuple[int, ...]:
        return tuple(getattr(row, part) for part in self.PARTS.values())

    def replaced_by(self, row: Price) -> Price | None:
        """The price in force in the place of which a new one begins."""
        return self.rows.get((canonical_pattern(row.model), row.backend, None)) if row.valid_from <= self.now else None

    def described(self, row: Price) -> Plain:
        found = super().described(row)
        if row.valid_from <= self.now:
            found.pop("valid_from", None)
        return found

    def may_remove(self, row: Price) -> bool:
        return row.valid_from > self.now

    def is_exported(self, row: Price) -> bool:
        # A price for a server that was deleted applies to nothing.
        found = self.world.backends.get(row.backend)
        return not row.backend or (found is not None and found.archived_at is None)

    def is_kept_with_a_word(self, row: Price) -> bool:
        return True

    def name_of(self, row: Price) -> str:
        return f"{row.model}{f' on {row.backend}' if row.backend else ''}"
