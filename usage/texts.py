"""Stored prompts and answers: who may read them, that it is noted, and how they are forgotten (threats T1, L7).

Author and reader: a text is its user's, whose key the call was made with. Others need the permission
usage.read_storedtext, and the right to see the request itself. Every text that is shown leaves an entry in the audit.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from auditlog import get_logentry_model
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from tenants.acting import who_acts
from tenants.models import User
from usage.models import StoredText
from usage.models.texts import ANSWER_CHARACTERS, PROMPT_CHARACTERS
from usage.redaction import fit
from usage.reports import Scope

KEPT = timedelta(days=7)
PERMISSION = "usage.read_storedtext"
# How many of the newest a search looks through, and how many it shows at a time.
LOOKED_THROUGH = 20_000
PAGE = 50
# Short transactions: the ledger waits for no more than one of them.
BATCH = 1000

# (our request id in hex, when it was admitted in epoch seconds, tenant, user, key, model, prompt, answer)
Text = tuple[str, float, int, int | None, int, str, str, str]


def store(texts: Iterable[Text], using: str = "default") -> None:
    """Redacted and cut. A text that is there already stays as it is."""
    rows = [
        StoredText(
            record_id=UUID(call_id), at=datetime.fromtimestamp(at, UTC), tenant_id=tenant, user_id=user,
            api_key_id=key, model=model, prompt=fit(prompt, PROMPT_CHARACTERS), answer=fit(answer, ANSWER_CHARACTERS),
        )
        for call_id, at, tenant, user, key, model, prompt, answer in texts
    ]  # fmt: skip
    StoredText.objects.using(using).bulk_create(rows, ignore_conflicts=True)


def forget(now: datetime | None = None, using: str = "default") -> int:
    """Deletes the texts that are too old; how many there were."""
    old = StoredText.objects.using(using).filter(at__lt=(now or timezone.now()) - KEPT)
    forgotten = 0
    while ids := list(old.values_list("pk", flat=True)[:BATCH]):
        forgotten += StoredText.objects.using(using).filter(pk__in=ids).delete()[0]
    return forgotten


def of_author(user: User) -> Q:
    return Q(user=user)


def readable(rows: Q, authors: Q, *, may_read_others: bool) -> QuerySet[StoredText]:
    """Of the calls that somebody may see (`rows`), those whose text they may read; never one that is too old, whether
    or not it was deleted yet. `authors`: which are their own."""
    fresh = StoredText.objects.filter(rows, at__gte=timezone.now() - KEPT)
    return fresh if may_read_others else fresh.filter(authors)


def readable_by(user: User, scopes: Sequence[Scope]) -> QuerySet[StoredText]:
    if not scopes:
        return StoredText.objects.none()
    seen = Q() if any(not scope.rows for scope in scopes) else _any_of(scopes)
    return readable(seen, of_author(user), may_read_others=user.has_perm(PERMISSION))


def found(texts: QuerySet[StoredText], wanted: str, before: datetime | None = None) -> QuerySet[StoredText]:
    """The newest that contain some words, in the prompt or the answer."""
    if before is not None:
        texts = texts.filter(at__lt=before)
    texts = texts.order_by("-at", "-pk")
    if not wanted:
        return texts
    end = next(iter(texts.values_list("at", flat=True)[LOOKED_THROUGH - 1 : LOOKED_THROUGH]), None)
    if end is not None:
        texts = texts.filter(at__gte=end)
    return texts.filter(Q(prompt__icontains=wanted) | Q(answer__icontains=wanted))


@transaction.atomic
def shown(texts: Iterable[StoredText]) -> list[StoredText]:
    """The texts, and an entry of the audit for each: what could not be noted is not shown."""
    read = list(texts)
    entries, columns = get_logentry_model(), who_acts().columns()
    kind = ContentType.objects.get_for_model(StoredText)
    entries.objects.bulk_create(
        entries(
            content_type=kind, object_pk=str(text.pk), object_repr=str(text), action=entries.Action.ACCESS, changes={},
            tenant_id=text.tenant_id, **columns,
        )
        for text in read
    )  # fmt: skip
    return read


def _any_of(scopes: Sequence[Scope]) -> Q:
    seen = Q()
    for scope in scopes:
        seen |= scope.rows
    return seen
