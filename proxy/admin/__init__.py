"""The Ollama servers, names and rules of models, and the gateway's own state."""

from proxy.admin import backends, catalogue, operation

__all__ = ["backends", "catalogue", "operation"]
