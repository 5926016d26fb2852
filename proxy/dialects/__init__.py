"""The three API families. An error's is chosen by the prefix of the path, even for unknown routes."""

from collections.abc import Mapping

from proxy.dialects import anthropic, ollama, openai, responses, transcriptions
from proxy.dialects.base import Dialect, Endpoint

__all__ = ["ANTHROPIC", "ENDPOINTS", "OLLAMA", "OPENAI", "RESPONSES", "Dialect", "Endpoint", "of_path"]

OLLAMA: Dialect = ollama.Ollama()
OPENAI: Dialect = openai.OpenAI()
RESPONSES: Dialect = responses.Responses()
ANTHROPIC: Dialect = anthropic.Anthropic()

# By path.
ENDPOINTS: Mapping[str, Endpoint] = {
    **ollama.ENDPOINTS,
    **openai.ENDPOINTS,
    **responses.ENDPOINTS,
    **transcriptions.ENDPOINTS,
    **anthropic.ENDPOINTS,
}


def of_path(path: bytes) -> Dialect:
    if path.startswith(b"/v1/messages"):
        return ANTHROPIC
    if path == b"/v1/responses":
        return RESPONSES
    return OPENAI if path.startswith(b"/v1") else OLLAMA
