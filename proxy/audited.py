"""Which tables of backends and models are audited."""

from urllib.parse import urlsplit

from proxy.models import (
    Backend,
    CachePurge,
    CacheSettings,
    DefaultModels,
    ModelAlias,
    ModelJob,
    ModelPolicy,
    PassThroughRoute,
    Webhook,
)
from tenants.audited import tenant_of
from tenants.auditing import track


def track_tables() -> None:
    track(Backend)
    track(ModelAlias)
    track(ModelPolicy)
    track(PassThroughRoute)
    track(DefaultModels, ignored={"aliases_seeded_at"})
    track(CacheSettings)
    track(CachePurge, tenant=lambda purge: purge.tenant_id)
    # That somebody had a model pulled or deleted; how far it is changes every second.
    track(
        ModelJob,
        only_made=True,
        ignored={"state", "status", "completed", "total", "problem", "wants_cancel", "seen_at", "started_at"},
    )
    track(Webhook, tenant=tenant_of, words={"url": _where}, name=_where)


def _where(webhook: Webhook) -> str:
    """The path and the query of a webhook's address are what lets one post there."""
    parts = urlsplit(webhook.url)
    return f"{parts.scheme}://{parts.hostname or ''}/…"
