"""Exactly one usage record per admitted call: spool first, database in batches (design §5)."""

from proxy.ledger.ledger import Ledger

__all__ = ["Ledger"]
