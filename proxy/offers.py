"""Which models people are offered in forms and examples: what the backends have now, and the names made for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from proxy.model_names import InvalidModelName, canonical_pattern
from proxy.model_names import parse as parse_model_name
from proxy.models import BackendReport, ModelAlias

# Families whose models embed texts and cannot chat (the names of Ollama's library say so too).
_EMBEDDING_FAMILIES = ("bert", "nomic-bert")


@dataclass(frozen=True, slots=True)
class Offer:
    name: str  # canonical
    embeds: bool  # only embeddings
    cloud: bool  # Ollama forwards it to ollama.com


def offers() -> list[Offer]:
    """Of the backends that are up, sorted by name, then aliases that are names and not patterns."""
    found = {}
    for installed in BackendReport.objects.current().values_list("models", flat=True):
        for item in installed:
            embeds = "embed" in item["name"] or item["family"] in _EMBEDDING_FAMILIES
            found[item["name"]] = Offer(item["name"], embeds, _is_cloud(item["name"]))
    for pattern, target in ModelAlias.objects.filter(enabled=True).values_list("pattern", "model"):
        try:
            name, served = parse_model_name(pattern), parse_model_name(target)
        except InvalidModelName:
            continue
        if served.canonical in found and name.canonical not in found:
            found[name.canonical] = Offer(name.canonical, found[served.canonical].embeds, served.cloud)
    return sorted(found.values(), key=lambda offer: offer.name)


def allowed(offered: Sequence[Offer], patterns: Sequence[str], *, cloud: bool) -> list[Offer]:
    """Those that a key with an allow-list may use; an empty list allows all."""
    compared = [canonical_pattern(pattern) for pattern in patterns]
    return [
        offer
        for offer in offered
        if (cloud or not offer.cloud)
        and (not compared or any(fnmatchcase(offer.name, pattern) for pattern in compared))
    ]


def example(offered: Sequence[Offer]) -> str:
    """The model that examples name: one that can chat, "" if there is none."""
    return next((offer.name for offer in offered if not offer.embeds), "")


def _is_cloud(name: str) -> bool:
    try:
        return parse_model_name(name).cloud
    except InvalidModelName:
        return False
