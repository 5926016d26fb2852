"""The Ollama servers, names and rules of models, and the gateway's own state."""

from proxy.admin import alerts, backends, cache, catalogue, ip_rules, operation, pass_through, reratings

__all__ = ["alerts", "backends", "cache", "catalogue", "ip_rules", "operation", "pass_through", "reratings"]
