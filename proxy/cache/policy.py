"""Which calls may get an answer that was made for another. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Policy = Literal["deterministic", "all"]

OFF = "off"
TTL_SECONDS = 3600
# With whom the calls of a tenant share answers: with those of the same key, of the tenant, or of all tenants that
# chose so, too.
KEY, TENANT, SHARED = "key", "tenant", "shared"


class Settings(NamedTuple):
    """The one row of proxy.CacheSettings; what is empty is as the environment says."""

    policy: str = ""
    ttl_seconds: int | None = None
    charges: bool = False


NOTHING_SAID = Settings()
NOTHING_KEPT = Settings(OFF)


class Purges(NamedTuple):
    """Number of the latest purge of everything, of each tenant (id), of each model (canonical name)."""

    all: int
    tenants: Mapping[int, int]
    models: Mapping[str, int]


NO_PURGES = Purges(0, {}, {})


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for the calls of one key."""

    policy: Policy
    scope: str  # "shared", "t" and the tenant's id, or "k" and the key's
    ttl_seconds: int
    charges: bool  # whether an answer that was not generated costs what its tokens cost
    purged: int = 0
    purged_models: Mapping[str, int] = field(default_factory=dict)

    def epoch(self, model: str) -> int:
        """Part of the key, so that a purge makes all older answers unreachable at once, wherever they are kept."""
        return max(self.purged, self.purged_models.get(model, 0))


def scope_of(sharing: str, tenant_id: int, key_id: int) -> str:
    if sharing == SHARED:
        return SHARED
    return f"k{key_id}" if sharing == KEY else f"t{tenant_id}"


def sharing_of(scope: str) -> str:
    """What scope_of made it of."""
    return SHARED if scope == SHARED else KEY if scope.startswith("k") else TENANT


# By path: where the seed and the temperature stand ("" = at the top), and the field without which nothing is generated.
_GENERATIONS: Mapping[str, tuple[str, str]] = {
    "/api/chat": ("options", "messages"),
    "/api/generate": ("options", "prompt"),
    "/v1/chat/completions": ("", "messages"),
    "/v1/completions": ("", "prompt"),
    "/v1/responses": ("", "input"),
    "/v1/messages": ("", "messages"),
}
# Ollama ignores a seed there.
_SEEDLESS = ("/v1/responses", "/v1/messages")
EMBEDDINGS: Mapping[str, str] = {"/api/embed": "input", "/v1/embeddings": "input", "/api/embeddings": "prompt"}


def kept_calls(policy: Policy, path: str) -> str:
    """In words, which calls of an endpoint may_share; "" for none."""
    if path in EMBEDDINGS or (policy == "all" and path in _GENERATIONS):
        return "A call"
    if path not in _GENERATIONS:
        return ""
    return "A call with temperature 0" if path in _SEEDLESS else "A call with temperature 0 or a seed"


def may_share(policy: Policy, path: str, request: Mapping[str, Any]) -> bool:
    """`request`: as it would be sent upstream."""
    if path in EMBEDDINGS:
        return bool(request.get(EMBEDDINGS[path]))  # without an input it loads the model
    where = _GENERATIONS.get(path)
    if where is None or not request.get(where[1]) or _asks_the_web(request.get("tools")):
        return False
    return policy == "all" or _is_deterministic(path, request.get(where[0]) or {} if where[0] else request)


def _is_deterministic(path: str, options: Mapping[str, Any]) -> bool:
    temperature, seed = options.get("temperature"), options.get("seed")
    if temperature is not None and temperature == 0:
        return True
    # A negative one is "any".
    return type(seed) is int and seed >= 0 and path not in _SEEDLESS


def _asks_the_web(tools: Any) -> bool:
    """Whether the answer depends on more than the question (ollama-api §2.10)."""
    if not isinstance(tools, list):
        return False
    for tool in tools:
        if isinstance(tool, dict):
            kind = tool.get("type")
            if (isinstance(kind, str) and kind.strip().lower().startswith("web_")) or _asks_the_web(tool.get("tools")):
                return True
    return False


class Wish(NamedTuple):
    """What a client asks of the cache."""

    may_get: bool  # an answer that is kept, or being made for another
    may_keep: bool


_ANY = Wish(may_get=True, may_keep=True)


def wish_of(cache_control: bytes | None) -> Wish:
    """By the request's Cache-Control: no-cache has it generated anew, no-store leaves nothing behind either."""
    if cache_control is None:
        return _ANY
    named = {part.partition(b"=")[0].strip().lower() for part in cache_control.split(b",")}
    if b"no-store" in named:
        return Wish(may_get=False, may_keep=False)
    return Wish(may_get=b"no-cache" not in named, may_keep=True)
