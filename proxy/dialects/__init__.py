"""The three API families: how each says an error. Chosen by the prefix of the path, even for unknown routes."""

from proxy.dialects import anthropic, ollama, openai
from proxy.dialects.base import Dialect

__all__ = ["ANTHROPIC", "OLLAMA", "OPENAI", "Dialect", "of_path"]

OLLAMA: Dialect = ollama.Ollama()
OPENAI: Dialect = openai.OpenAI()
ANTHROPIC: Dialect = anthropic.Anthropic()


def of_path(path: bytes) -> Dialect:
    if path.startswith(b"/v1/messages"):
        return ANTHROPIC
    return OPENAI if path.startswith(b"/v1") else OLLAMA
