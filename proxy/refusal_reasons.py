"""Why calls are refused, in words, by the code that is counted (proxy/worker_reports.py)."""

REASONS = {
    "missing_key": "No key was sent.",
    "unreadable_key": "The key was sent in a form that cannot be read.",
    "unknown_key": "The key is not one of this gateway, or was mistyped.",
    "two_keys": "Two different keys were sent.",
    "key_revoked": "The key was revoked.",
    "key_disabled": "The key is switched off.",
    "key_expired": "The key has expired.",
    "key_rotated": "This secret was replaced, and its overlap is over.",
    "key_ip_denied": "An IP rule of the key or of its tenant shuts the address out.",
    "key_in_path": "The key came in the path, which it may not.",
    "tenant_disabled": "The tenant is switched off or was deleted.",
    "user_disabled": "The user of the key is switched off.",
    "ip_denied": "An IP rule for all shuts the address out.",
    "too_many_failures": "Too many keys that are not accepted came from one address.",
    "endpoint_not_allowed": "The key may not use this kind of call.",
    "origin_not_allowed": "A web page of a foreign origin made the call.",
    "model_not_allowed": "The key may not use this model.",
    "model_not_found": "No backend has this model.",
    "invalid_model_name": "The name of the model is none.",
    "invalid_request": "The request is malformed.",
    "context_too_long": "More context was asked for than the model runs with.",
    "body_too_large": "The body is too large.",
    "unsupported_encoding": "The body is compressed in a way that is not supported.",
    "unknown_route": "There is no such path.",
    "method_not_allowed": "The path does not know this method.",
    "limit_requests": "A limit on requests is used up.",
    "limit_tokens": "A limit on tokens is used up.",
    "limit_concurrent": "Too many calls at the same time.",
    "budget_cost": "A budget is used up.",
    "line_full": "Too many calls wait already.",
    "no_backend": "No backend could serve the call.",
    "draining": "The gateway was shutting down.",
    "state_unavailable": "The gateway had no rules: it was starting, or had lost its database.",
    "ledger_full": "The usage could not have been recorded.",
    "loop": "The gateway was its own backend.",
}


def reason(code: str) -> str:
    return REASONS.get(code, code.replace("_", " ").capitalize() + ".")
