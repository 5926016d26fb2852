"""Names of models (ollama-api §6): one canonical form decides access, price, label and what is sent. Pure."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
# Of a name, spelled out: what the columns hold.
MAX_LENGTH = 500

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}\Z")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,79}\Z")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,349}\Z")


class InvalidModelName(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class ModelName:
    canonical: str  # lower case, without the default host and namespace, always with a tag
    upstream: str  # the same, without a tag that was not given
    cloud: bool  # Ollama would forward it to ollama.com
    shown: str  # as canonical, in the case it was given: how Ollama speaks of it


@lru_cache(maxsize=4096)
def parse(name: str) -> ModelName:
    """Raises InvalidModelName. Cached: a fleet has few names, and junk only cycles through the cache."""
    if len(name) > MAX_LENGTH:
        raise InvalidModelName("invalid model name")
    rest = name.strip(" \t\r\n")
    local = rest[-6:].lower() == ":local"
    if local:
        rest = rest[:-6]
    if "://" in rest:
        rest = rest.split("://", 1)[1]
    path, _, last = rest.rpartition("/")
    model, colon, tag = last.partition(":")
    cloud = bool(colon) and (tag.lower() == "cloud" or tag.lower().endswith("-cloud"))
    if (local and cloud) or tag.lower().endswith(":local") or tag.lower().endswith(":cloud"):
        raise InvalidModelName(f'use either :local or :cloud, not both: "{name[:200]}"')
    host, namespace = _split_path(path)
    if not (_PART.match(model) and _HOST.match(host) and _NAMESPACE.match(namespace)):
        raise InvalidModelName("invalid model name")
    # A tag "local" would not survive being sent: Ollama takes it off as the suffix that it looks like.
    if colon and (not _PART.match(tag) or tag.lower() == "local"):
        raise InvalidModelName("invalid model name")
    base = model
    if host.lower() != DEFAULT_HOST:
        base = f"{host}/{namespace}/{model}"
    elif namespace.lower() != DEFAULT_NAMESPACE:
        base = f"{namespace}/{model}"
    shown = f"{base}:{tag or DEFAULT_TAG}"
    base = base.lower()
    canonical = f"{base}:{tag.lower() or DEFAULT_TAG}"
    if len(canonical) > MAX_LENGTH:
        raise InvalidModelName("invalid model name")
    return ModelName(canonical, canonical if tag else base, cloud, shown)


def _split_path(path: str) -> tuple[str, str]:
    if not path:
        return DEFAULT_HOST, DEFAULT_NAMESPACE
    host, slash, namespace = path.rpartition("/")
    if not slash:
        return DEFAULT_HOST, path
    if "/" in host:
        raise InvalidModelName("invalid model name")
    return host, namespace


def canonical_pattern(pattern: str) -> str:
    """An allow-list entry, alias or price pattern in the form that canonical names are compared with."""
    text = pattern.strip().lower()
    if any(char in text for char in "*?["):
        return text
    try:
        return parse(text).canonical
    except InvalidModelName:
        return text


def are_within(names: Collection[str], bounds: Collection[str]) -> bool:
    """Whether an allow-list allows nothing that another does not; that of patterns only where it is plain to see."""
    wide = [canonical_pattern(bound) for bound in bounds]
    return bool(names) and all(any(_is_within(canonical_pattern(name), bound) for bound in wide) for name in names)


def _is_within(name: str, bound: str) -> bool:
    if name == bound:
        return True
    # What a * matches may be a wildcard in its turn; what a ? or [ matches, or is between brackets, may not.
    both_plain = "[" not in name and "?" not in bound and "[" not in bound
    return fnmatchcase(name, bound) and (both_plain or not any(char in name for char in "*?["))
