"""`/analytics…` and `/test`, which users of other proxies know: figures and requests as JSON, for whoever asks.

With an API key one sees the calls of its user in its tenant, or of the key alone if it is nobody's; signed in, what the
pages show. Texts, where they are stored, go to keys only: to show one leaves an entry in the audit, and a page that is
merely opened must change nothing (T7).
"""

from gateway_site.analytics.urls import urls

__all__ = ["urls"]
