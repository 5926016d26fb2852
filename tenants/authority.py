"""Who may undo what on a key: what somebody above decided, those below cannot lift."""

from typing import Any

from tenants.models import ApiKey, Authority, Role, User

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


def may_cap_output(by: Authority, key: ApiKey, tokens: int | None) -> bool:
    """Whether somebody may set the most tokens of an answer to this; None lifts it."""
    present = key.max_output_tokens
    if present is None or may_undo(by, key.max_output_tokens_by):
        return True
    return tokens is not None and tokens <= present


def capped(key: ApiKey, tokens: int | None, by: Authority) -> dict[str, Any]:
    """The columns of a key whose most tokens are set to what `may_cap_output` allows."""
    if tokens == key.max_output_tokens:
        return {}
    # Lowered by somebody below: whoever set it goes on to be the one who can raise it.
    stays = key.max_output_tokens is not None and not may_undo(by, key.max_output_tokens_by)
    return {"max_output_tokens": tokens, "max_output_tokens_by": key.max_output_tokens_by if stays else by}
