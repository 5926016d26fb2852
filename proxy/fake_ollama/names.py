"""Model names as Ollama reads them: [scheme://][host[:port]/][namespace/]model[:tag]."""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}", re.ASCII)
NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", re.ASCII)
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", re.ASCII)


class InvalidName(ValueError):
    pass


@dataclass(frozen=True)
class Name:
    host: str
    namespace: str
    model: str
    tag: str
    cloud: bool = False

    @cached_property
    def key(self) -> str:
        """What two spellings of the same model have in common."""
        return self.full.lower()

    @cached_property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @cached_property
    def display(self) -> str:
        """The shortest spelling that still has a tag."""
        short = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{short}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{short}"
        return short


@lru_cache(4096)
def parse_name(text: str) -> Name:
    bare, local = without_local(text.strip())
    path, tag = split_tag(bare)
    cloud = tag.lower() == "cloud" or tag.lower().endswith("-cloud")
    if local and cloud:
        raise InvalidName(f'use either :local or :cloud, not both: "{text}"')
    host, namespace, model = split_path(path)
    if not all((HOST.fullmatch(host), NAMESPACE.fullmatch(namespace), PART.fullmatch(model), PART.fullmatch(tag))):
        raise InvalidName("invalid model name")
    return Name(host, namespace, model, tag, cloud)


def without_local(text: str) -> tuple[str, bool]:
    for end in (":local", ":local:cloud"):
        if text.lower().endswith(end):
            return text[: -len(end)] + end.removeprefix(":local"), True
    return text, False


def split_tag(text: str) -> tuple[str, str]:
    head, colon, tag = text.rpartition(":")
    # Only after the last slash: "host:5000/m" has a port, not a tag.
    if colon and "/" not in tag:
        return head, tag
    return text, DEFAULT_TAG


def split_path(path: str) -> tuple[str, str, str]:
    path = path.partition("://")[2] or path
    rest, _, model = path.rpartition("/")
    host, _, namespace = rest.rpartition("/")
    return host or DEFAULT_HOST, namespace or DEFAULT_NAMESPACE, model
