"""Tenants, people, keys and rules."""

from tenants.admin import keys, people, rules

__all__ = ["keys", "people", "rules"]
