"""Tenants, people, keys, rules and ways to sign in."""

from tenants.admin import keys, people, rules, sign_in

__all__ = ["keys", "people", "rules", "sign_in"]
