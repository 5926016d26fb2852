"""Which backend: what is known of each, and the choice among them."""

from proxy.fleet.fleet import Fleet
from proxy.fleet.state import BackendState

__all__ = ["BackendState", "Fleet"]
