"""What is installed: models by name, blobs by digest."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from proxy.fake_ollama.names import Name, parse_name

BYTES_PER_BILLION = 631_060_371.5625
CONTEXT_LENGTH = 131_072


@dataclass
class Model:
    """An installed model. What is left empty follows from the name."""

    name: str
    digest: str = ""
    # Copies and derived models share the weights, and so the runner.
    weights: str = ""
    size: int = 0
    capabilities: tuple[str, ...] = ()
    context_length: int = CONTEXT_LENGTH
    embedding_length: int = 8
    family: str = ""
    parameter_size: str = ""
    system: str = ""
    remote_host: str = ""
    modified_at: datetime = field(default_factory=lambda: datetime.now().astimezone())

    def __post_init__(self) -> None:
        self.stored = parse_name(self.name)
        self.name = self.stored.display
        self.digest = self.digest or sha256("manifest " + self.stored.key)
        self.weights = self.weights or sha256("weights " + self.stored.key)
        billions = parameters_of(self.stored)
        self.parameter_size = self.parameter_size or f"{billions:g}B"
        self.size = self.size or round(billions * BYTES_PER_BILLION)
        self.capabilities = tuple(self.capabilities or capabilities_of(self.stored))
        self.family = self.family or family_of(self.stored)

    def can(self, capability: str) -> bool:
        return capability in self.capabilities

    @property
    def details(self) -> dict[str, object]:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": "Q4_K_M",
        }


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def parameters_of(name: Name) -> float:
    match = re.search(r"(\d+(?:\.\d+)?)b\b", name.tag.lower())
    return float(match[1]) if match else 3.2


def family_of(name: Name) -> str:
    match = re.match(r"[a-z]+", name.model.lower())
    return match[0] if match else "llama"


def capabilities_of(name: Name) -> Iterator[str]:
    text = name.display.lower()
    if any(part in text for part in ("embed", "minilm", "bge")):
        yield "embedding"
        return
    yield "completion"
    yield "tools"
    if any(part in text for part in ("qwen3", "deepseek-r1", "gpt-oss", "think")):
        yield "thinking"
    if any(part in text for part in ("vision", "llava")):
        yield "vision"
    if any(part in text for part in ("coder", "codellama", "starcoder")):
        yield "insert"


class Library:
    def __init__(self, models: Iterable[Model]) -> None:
        self.models: dict[str, Model] = {}
        self.blobs: set[str] = set()
        for model in models:
            self.add(model)

    def add(self, model: Model) -> None:
        self.models[model.stored.key] = model

    def find(self, name: Name) -> Model | None:
        return self.models.get(name.key)

    def find_exactly(self, name: Name) -> Model | None:
        """/api/embeddings alone minds the case of a name."""
        model = self.find(name)
        return model if model and model.stored.full == name.full else None

    def remove(self, name: Name) -> Model | None:
        return self.models.pop(name.key, None)

    def copy(self, model: Model, to: Name) -> Model:
        made = replace(model, name=to.display, modified_at=datetime.now().astimezone())
        self.add(made)
        return made

    def newest_first(self) -> list[Model]:
        return sorted(self.models.values(), key=lambda model: model.modified_at, reverse=True)
