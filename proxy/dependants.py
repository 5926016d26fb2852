"""What would miss a model: asked before it is deleted."""

from collections.abc import Iterable

from proxy.model_names import canonical_pattern
from proxy.models import Backend, BackendReport, DefaultModels, ModelAlias, ModelPolicy
from tenants.models import ApiKey, Limit
from usage.models import Price

# Keys that are named; of more only the number is told.
MOST_NAMED = 5


def dependants(model: str, backend: Backend) -> list[str]:
    """Sentences about what names a model, by its canonical name, or would no longer find it."""
    found = [_who_else_has(model, backend)]
    found += _named("Alias", (str(row) for row in ModelAlias.objects.filter(enabled=True) if _is(row.model, model)))
    for row in DefaultModels.objects.all():
        if _is(row.chat_model, model):
            found.append("It is the default model for chats (@chat).")
        if _is(row.embedding_model, model):
            found.append("It is the default model for embeddings (@embedding).")
    found += _named("Policy", (row.pattern for row in ModelPolicy.objects.all() if _is(row.pattern, model)))
    found += _named("Limit", (str(row) for row in _limits() if _is(row.model, model)))
    found += _named("Price", (str(row) for row in Price.objects.exclude(model__contains="*") if _is(row.model, model)))
    found += _named("Key that names it", (str(key) for key in _keys_naming(model)))
    return found


def only_on(backend: Backend) -> list[str]:
    """Canonical names of models that no other backend in use has."""
    others = set(BackendReport.objects.current().exclude(backend=backend).model_names())
    report = getattr(backend, "report", None)
    return [item["name"] for item in report.models if item["name"] not in others] if report else []


def _who_else_has(model: str, backend: Backend) -> str:
    reports = BackendReport.objects.current().exclude(backend=backend).select_related("backend")
    names = [report.backend.name for report in reports if any(item["name"] == model for item in report.models)]
    if names:
        return f"Calls for it go on: {', '.join(sorted(names))} {'has' if len(names) == 1 else 'have'} it, too."
    return "No other backend has it: calls for it will get 404."


def _limits() -> Iterable[Limit]:
    return Limit.objects.exclude(model="").select_related("tenant", "user", "key")


def _keys_naming(model: str) -> Iterable[ApiKey]:
    # The text of the list first: there may be 100,000 keys.
    base = model.removesuffix(":latest")
    keys = ApiKey.objects.usable().filter(models_allowed__icontains=base).only("name", "prefix", "models_allowed")
    return (key for key in keys.iterator(500) if any(_is(name, model) for name in key.models_allowed))


def _is(written: str, model: str) -> bool:
    """Whether what somebody wrote means this one model. Patterns go on to mean the others."""
    return canonical_pattern(written) == model


def _named(kind: str, names: Iterable[str]) -> list[str]:
    found = list(names)
    sentences = [f"{kind}: {name}" for name in found[:MOST_NAMED]]
    if len(found) > MOST_NAMED:
        sentences.append(f"… and {len(found) - MOST_NAMED} more")
    return sentences
