"""Who may undo what on a key: what somebody above decided, those below cannot lift."""

from typing import Any

from tenants.models import ApiKey, Authority, Role, User

_RANKS = {"": 0, Authority.PERSON: 1, Authority.OWNER: 2, Authority.ADMINISTRATOR: 3}


def authority_over(user: User, key: ApiKey) -> Authority:
    """That of somebody who may see the key at all."""
    if user.has_perm("tenants.change_apikey"):
        return Authority.ADMINISTRATOR
    owns = user.memberships.filter(tenant=key.tenant_id, role=Role.OWNER).exists()
    return Authority.OWNER if owns else Authority.PERSON


def may_undo(by: Authority, decided_by: str) -> bool:
    """`decided_by`: an Authority, or "" where nobody decided anything."""
    return _RANKS[by] >= _RANKS.get(decided_by, len(_RANKS))


def may_switch_on(by: Authority, key: ApiKey) -> bool:
    return may_undo(by, key.switched_off_by)


def switched(*, on: bool, by: Authority) -> dict[str, Any]:
    """Columns of a key that is switched on or off. Whoever switches off what is off already: see `switch`."""
    return {"enabled": on, "switched_off_by": "" if on else by}


def switch(key: ApiKey, *, on: bool, by: Authority) -> bool:
    """Changes the row in memory. False if a key was switched off by somebody above, and stays so."""
    if on and not may_switch_on(by, key):
        return False
    if not on and not key.enabled and not may_undo(by, key.switched_off_by):
        return True  # off already, by somebody above: it stays theirs
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
    """Columns of a key whose most tokens are set to what `may_cap_output` allows."""
    if tokens == key.max_output_tokens:
        return {}
    # Lowered by somebody below: whoever set it goes on to be the one who can raise it.
    stays = key.max_output_tokens is not None and not may_undo(by, key.max_output_tokens_by)
    return {"max_output_tokens": tokens, "max_output_tokens_by": key.max_output_tokens_by if stays else by}
