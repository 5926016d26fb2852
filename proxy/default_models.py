"""The default models: what names of other services' models stand for here (gpt-*, claude-*). Pure.

An alias may lead to "@chat" or "@embedding" instead of a model: to the default chosen in the admin or, where none is,
to the first installed model that can do it, by name. No model can have such a name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.model_names import parse

CHAT, EMBEDDING = "@chat", "@embedding"
WORDS: Mapping[str, str] = {CHAT: "the default chat model", EMBEDDING: "the default embedding model"}
# What the first start sets up.
SEEDS = (("gpt-*", CHAT), ("claude-*", CHAT), ("text-embedding-*", EMBEDDING))

# Looks like a name of another service, but is a family of Ollama's own: who asks for it means it.
_MEANT_AS_SAID = ("gpt-oss",)

# Servers before capabilities were listed: families and names of models that only embed.
_EMBEDDING_FAMILIES = ("bert", "nomic-bert", "xlm-roberta", "gemma-embedding")
_EMBEDDING_NAMES = ("embed", "minilm", "bge-", "paraphrase-multilingual")


@dataclass(frozen=True, slots=True)
class Installed:
    """What the meaning of a name depends on. Names are canonical."""

    # On any enabled backend, also on one that does not answer now: its models have not become other ones.
    names: frozenset[str] = frozenset()
    # On backends that are up, in the order in which they are the default.
    chat: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()

    def able(self, target: str) -> tuple[str, ...]:
        return self.chat if target == CHAT else self.embedding


NOTHING = Installed()


def survey(names: Iterable[str], items: Iterable[tuple[str, Mapping[str, Any]]]) -> Installed:
    """`items`: (canonical name, item of /api/tags) of the backends that are up."""
    chat, embedding = set(), set()
    for name, item in items:
        # A cloud model would send prompts away: nobody gets one who did not ask for it.
        if not (parse(name).cloud or item.get("remote_host") or item.get("remote_model")):
            can = capabilities(name, item)
            if "completion" in can:
                chat.add(name)
            if "embedding" in can:
                embedding.add(name)
    return Installed(frozenset(names), tuple(sorted(chat)), tuple(sorted(embedding)))


def capabilities(name: str, item: Mapping[str, Any]) -> tuple[str, ...]:
    listed = item.get("capabilities")
    if isinstance(listed, list) and listed:
        return tuple(str(capability) for capability in listed)
    details = item.get("details")
    families = [details.get("family"), *(details.get("families") or ())] if isinstance(details, dict) else []
    embeds = any(family in _EMBEDDING_FAMILIES for family in families) or any(part in name for part in _EMBEDDING_NAMES)
    return ("embedding",) if embeds else ("completion",)


def may_stand_for(canonical: str) -> bool:
    """Whether a name that an automatic alias matches may be taken for that of another service's model."""
    return not canonical.startswith(_MEANT_AS_SAID)
