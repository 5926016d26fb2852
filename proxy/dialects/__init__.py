"""The three API families. An error's is chosen by the prefix of the path, even for unknown routes."""

from collections.abc import Mapping

from proxy.dialects import anthropic, ollama, openai
from proxy.dialects.base import Dialect, Endpoint

__all__ = ["ANTHROPIC", "ENDPOINTS", "OLLAMA", "OPENAI", "Dialect", "Endpoint", "of_path"]

OLLAMA: Dialect = ollama.Ollama()
OPENAI: Dialect = openai.OpenAI()
ANTHROPIC: Dialect = anthropic.Anthropic()

# By path.
ENDPOINTS: Mapping[str, Endpoint] = {**ollama.ENDPOINTS, **openai.ENDPOINTS, **anthropic.ENDPOINTS}


def of_path(path: bytes) -> Dialect:
    if path.startswith(b"/v1/messages"):
        return ANTHROPIC
    return OPENAI if path.startswith(b"/v1") else OLLAMA
