"""Tenants, people, keys, rules and ways to sign in."""

from tenants.admin import audit, keys, people, rules, sign_in, tokens

__all__ = ["audit", "keys", "people", "rules", "sign_in", "tokens"]
