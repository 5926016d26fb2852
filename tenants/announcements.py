"""What the running workers are told at once, over the channel layer. Best effort: whatever matters is in the database
as well, and each worker looks there four times a second."""

import asyncio
import logging
import time
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import models, transaction

logger = logging.getLogger(__name__)

# The group of all workers' subscriptions (proxy/live).
WORKERS = "workers"
# Seconds. Pages and commands must not wait for a layer that hangs; after a failure nobody does for a while.
PATIENCE = 0.5
PAUSE = 5.0
# A row of changes is one change.
SAME_CHANGE = 0.1
# A sign-in is no change of the rules.
NO_RULES = {"last_login", "password"}

_failed_at = _changed_at = -PAUSE


def rules_changed(using: str | None = None) -> None:
    """After the commit, has all workers look at the rules now instead of within a quarter of a second."""
    transaction.on_commit(_tell_of_change, using=using, robust=True)


def announce_row(
    sender: type[models.Model], using: str, update_fields: frozenset[str] | None = None, **kwargs: object
) -> None:
    """Receives post_save and post_delete. Bulk changes say so by themselves, or wait for the next look."""
    if update_fields is None or not update_fields <= NO_RULES:
        rules_changed(using)


def announce(message: dict[str, Any], using: str | None = None) -> None:
    """Tells all workers after the commit, if the channel layer works. Never raises."""
    transaction.on_commit(lambda: _tell(message), using=using, robust=True)


def _tell_of_change() -> None:
    global _changed_at  # noqa: PLW0603 - of this process
    now = time.monotonic()
    if now - _changed_at >= SAME_CHANGE:
        _changed_at = now
        _tell({"type": "withdrawn"})


def _tell(message: dict[str, Any]) -> None:
    global _failed_at  # noqa: PLW0603 - one layer, one memory of its failure
    if time.monotonic() - _failed_at < PAUSE or _in_a_loop():
        return
    try:
        async_to_sync(_send)(message)
    except Exception as exc:
        _failed_at = time.monotonic()
        logger.warning("The channel layer does not answer; workers learn of changes by themselves (%r)", exc)


def _in_a_loop() -> bool:
    """Whether blocking here would block an event loop; nobody should use the ORM there."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _send(message: dict[str, Any]) -> None:
    layer = get_channel_layer()
    if layer is not None:
        async with asyncio.timeout(PATIENCE):
            await layer.group_send(WORKERS, message)
