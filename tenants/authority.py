"""Who may undo what on a key: what somebody above decided, those below cannot lift."""

from collections.abc import Callable, Collection
from typing import Any

from tenants.models import ApiKey, Authority, Role, User

# What bounds a key: each has a column beside it, `…_by`, of who set it.
BOUNDS = ("max_output_tokens", "models_allowed", "expires_at")
# Whether an allow-list of models allows nothing that another does not: proxy/model_names.py says.
AreWithin = Callable[[Collection[str], Collection[str]], bool]
_RANKS = {Authority.PERSON: 1, Authority.OWNER: 2, Authority.ADMINISTRATOR: 3}


def authority_in(user: User, tenant_id: int) -> Authority:
    """Of somebody who may have keys in a tenant, over keys they see there."""
    if user.has_perm("tenants.change_apikey"):
        return Authority.ADMINISTRATOR
    owns = user.memberships.filter(tenant=tenant_id, role=Role.OWNER).exists()
    return Authority.OWNER if owns else Authority.PERSON


def may_undo(by: Authority, decided_by: str) -> bool:
    """`decided_by`: an Authority; "", where nobody said who it was, counts as an administrator."""
    return _RANKS[by] >= _RANKS[Authority(decided_by or Authority.ADMINISTRATOR)]


def switched(*, on: bool, by: Authority) -> dict[str, Any]:
    """The columns of a key that is switched on or off."""
    return {"enabled": on, "switched_off_by": "" if on else by}


def switch(key: ApiKey, *, on: bool, by: Authority) -> bool:
    """Changes the row in memory. False if it was switched off by somebody above, and stays theirs."""
    if not key.enabled and not may_undo(by, key.switched_off_by):
        return not on
    for name, value in switched(on=on, by=by).items():
        setattr(key, name, value)
    return True


def may_bound(by: Authority, key: ApiKey, column: str, value: Any, are_within: AreWithin) -> bool:
    """Whether somebody may set a column of BOUNDS to this; what is empty lifts it."""
    present = getattr(key, column)
    if not present or value == present or may_undo(by, getattr(key, f"{column}_by")):
        return True
    if not value:
        return False
    return are_within(value, present) if column == "models_allowed" else value <= present


def bounded(key: ApiKey, column: str, value: Any, by: Authority) -> dict[str, Any]:
    """The columns of a key one of whose bounds is set to what `may_bound` allows."""
    present, decided_by = getattr(key, column), getattr(key, f"{column}_by")
    if value == present:
        return {}
    # Tightened by somebody below: whoever set it goes on to be the one who can lift it.
    stays = present and not may_undo(by, decided_by)
    return {column: value, f"{column}_by": decided_by if stays else by}
