"""Of schemathesis (SCHEMATHESIS_HOOKS): requests that keep to the document also name what is there, so that they get
past the look-ups. No address leaves this machine, and `/key` is asked with an API key."""

import os
import re

import schemathesis
from schemathesis import GenerationMode
from schemathesis.generation.meta import TestPhase

# What a request names: a tenant that no number below leads to, a person in it, one of its keys. And the key of `/key`,
# which nothing here ends.
TOKEN, KEY, TENANT, PERSON, PREFIX = (
    os.environ[f"FUZZ_{name}"] for name in ("TOKEN", "KEY", "TENANT", "PERSON", "PREFIX")
)
NOWHERE = "http://127.0.0.1:9"
THERE = {"tenant": TENANT, "managed_by": TENANT, "user": PERSON, "key": PREFIX, "acts_as": PREFIX, "prefix": PREFIX}
SUBJECTS = ("tenant", "user", "key")


@schemathesis.auth()
class Credential:
    def get(self, case, context):
        return KEY if case.path.endswith("/api/key") else TOKEN

    def set(self, case, data, context):
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def before_call(context, case, kwargs):
    is_valid = case.meta.generation.mode == GenerationMode.POSITIVE
    if isinstance(case.body, dict):
        body = {name: there(name, value) if is_valid else value for name, value in case.body.items()}
        case.body = coherent(body) if is_valid and "metric" in body else body
        for name in ("url", "proxy_url"):
            if isinstance(body.get(name), str) and re.match(r"\s*https?:", body[name], re.IGNORECASE):
                case.body[name] = NOWHERE
    # What a stateful run has created itself, it looks for under its own number.
    if is_valid and case.path_parameters and case.meta.phase.name != TestPhase.STATEFUL:
        case.path_parameters |= {name: there(name, value) for name, value in case.path_parameters.items()}


def there(name, value):
    if value is None:
        return None
    if name == "id":
        return int(value) % 4 + 1 if str(value).isdecimal() else value
    if name == "cidr":
        return f"10.{len(value)}.0.0/16"
    if name == "email":
        return f"u{len(value)}@example.com"
    return THERE.get(name, value)


def coherent(limit):
    """The subject that the scope asks for, and a window where the metric has one."""
    limit = {name: value for name, value in limit.items() if name not in SUBJECTS}
    if limit["scope"] in SUBJECTS:
        limit[limit["scope"]] = THERE[limit["scope"]]
    else:
        limit.pop("managed_by", None)
    limit["window"] = "none" if limit["metric"] == "concurrent" else "seconds"
    limit["window_seconds"] = None if limit["metric"] == "concurrent" else 60
    if isinstance(limit["amount"], str):
        limit["metric"], limit["window"], limit["window_seconds"] = "cost", "seconds", 60
    for name in ("alert", "override_amount", "override_until"):
        limit.pop(name, None)
    return limit
