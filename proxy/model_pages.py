"""Models: what a person's keys may use, where it is, whether it is warm, what it costs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path
from django.utils import timezone
from django.views.decorators.http import require_safe

from proxy.fleet.state import SMALLEST_DEFAULT_CONTEXT
from proxy.model_names import InvalidModelName, parse
from proxy.models import Backend, BackendReport, ModelAlias
from proxy.offers import Offer, allowed, offers
from proxy.rules_watch import policies, price_rows
from proxy.snapshot import NO_POLICY
from tenants import money
from tenants.models import ApiKey
from tenants.requests import PersonRequest
from usage.costs import PriceRow, pick


@dataclass(frozen=True, slots=True)
class PriceTag:
    """A price, part by part, in words; None: no price, which is not 0. `backends`: those that it holds on, where not
    all are alike."""

    parts: tuple[str, ...] | None
    backends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A backend that has the model. `vram`: bytes of the loaded model, None where it is not loaded."""

    backend: str
    vram: int | None


@dataclass(frozen=True, slots=True)
class ModelLine:
    """`stands_for`: of an alias, the model that answers. `trained`, `given`: tokens of context, 0 if not known."""

    name: str
    stands_for: str
    embeds: bool
    cloud: bool
    size: int
    parameters: str
    quantization: str
    trained: int
    given: int
    places: tuple[Place, ...]
    prices: tuple[PriceTag, ...]

    @property
    def warm(self) -> int:
        """On how many backends it is loaded."""
        return sum(place.vram is not None for place in self.places)


def urls() -> list[URLPattern]:
    return [path("models/", models, name="models")]


@login_required
@require_safe
def models(request: PersonRequest) -> HttpResponse:
    reports = list(BackendReport.objects.current().select_related("backend").order_by("backend__name"))
    sees_all = request.user.is_staff_who_may("proxy.view_backend")
    # What they may use, each once: an owner has as many keys as the tenant.
    rights = ApiKey.objects.visible_to(request.user).usable().values_list("models_allowed", "may_use_cloud")
    keys = {(tuple(names), cloud) for names, cloud in rights}
    offered = offers() if sees_all else _for_keys(keys)
    return render(request, "models/list.html", {
        "models": list(lines(offered, reports)),
        "sees_all": sees_all,
        "has_keys": bool(keys),
        "shows_backends": sees_all or request.user.tenants_owned().exists(),
        "any_backend": Backend.objects.filter(enabled=True, archived_at=None).exists(),
        "as_of": max((report.updated_at for report in reports), default=None),
    })  # fmt: skip


def lines(offered: Iterable[Offer], reports: Sequence[BackendReport]) -> Iterator[ModelLine]:
    now = timezone.now()
    prices = price_rows()
    pinned = policies()
    targets = dict(ModelAlias.objects.filter(enabled=True).values_list("pattern", "model"))
    installed = {report.backend.name: {item["name"]: item for item in report.models} for report in reports}
    contexts = {report.backend.name: report.backend.context_length for report in reports}
    loaded = {report.backend.name: {item["name"]: item for item in report.warm} for report in reports}
    for offer in offered:
        served = _served(offer.name, targets) if not any(offer.name in of for of in installed.values()) else offer.name
        found = {backend: of[served] for backend, of in installed.items() if served in of}
        warm = {backend: loaded[backend][served] for backend in found if served in loaded[backend]}
        item: Mapping[str, Any] = next(iter(found.values()), {})
        policy = next((policy for policy in pinned if fnmatchcase(served, policy.pattern)), NO_POLICY)
        trained = item.get("context", 0)
        given = max((policy.num_ctx or _context(contexts[each], warm.get(each)) for each in found), default=0)
        yield ModelLine(
            offer.name,
            served if served != offer.name else "",
            offer.embeds,
            offer.cloud,
            item.get("size", 0),
            item.get("parameters", ""),
            item.get("quantization", ""),
            trained,
            min(given, trained) if trained else given,
            tuple(Place(backend, warm[backend]["vram"] if backend in warm else None) for backend in found),
            price_tags(prices, served, list(found), now),
        )


def _context(configured: int | None, loaded: Mapping[str, Any] | None) -> int:
    """Tokens that a call gets on a backend, as BackendState.context_of."""
    return (loaded["context"] if loaded else 0) or configured or SMALLEST_DEFAULT_CONTEXT


def price_tags(prices: Sequence[PriceRow], model: str, backends: Sequence[str], now: datetime) -> tuple[PriceTag, ...]:
    """One if it costs the same everywhere, else one for each price that there is."""
    by_parts: dict[tuple[str, ...] | None, list[str]] = {}
    for backend in backends:
        price = pick(prices, model, backend, now)
        by_parts.setdefault(None if price is None else _parts(price), []).append(backend)
    alike = len(by_parts) == 1
    return tuple(PriceTag(parts, () if alike else tuple(names)) for parts, names in by_parts.items())


def _parts(price: PriceRow) -> tuple[str, ...]:
    found = []
    if price.input_nano or price.output_nano:
        found.append(f"{money.shown(price.input_nano)} per 1 M prompt tokens")
        found.append(f"{money.shown(price.output_nano)} per 1 M answer tokens")
    if price.gpu_second_nano:
        found.append(f"{money.shown(price.gpu_second_nano)} per GPU-second")
    if price.kwh_nano and price.watts:
        found.append(f"{money.shown(price.kwh_nano)} per kWh × {price.watts} W")
    return tuple(found) or ("0",)


def _for_keys(keys: Iterable[tuple[tuple[str, ...], bool]]) -> list[Offer]:
    """What at least one of them may use: (its models, whether cloud models) of each."""
    offered = offers()
    found = {offer for names, cloud in keys for offer in allowed(offered, names, cloud=cloud)}
    return [offer for offer in offered if offer in found]


def _served(name: str, targets: Mapping[str, str]) -> str:
    for pattern, target in targets.items():
        try:
            if parse(pattern).canonical == name:
                return parse(target).canonical
        except InvalidModelName:
            continue
    return name
