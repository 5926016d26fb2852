"""The snippet of docs/limits.md believes what we sign, and nothing else."""

import re
import time
from pathlib import Path

import pytest

from proxy.alerts.signature import new_secret, signature

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")
BODY = b'{"event":"test","text":"\xc3\xa9"}'


@pytest.fixture(scope="module")
def believes():
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(snippet, names)
    return names["is_from_the_gateway"]


def test_the_documented_snippet_believes_what_is_signed(believes):
    secret, now = new_secret(), int(time.time())
    assert believes(secret, signature(secret, BODY, now), BODY)


@pytest.mark.parametrize(
    "change", ["secret", "body", "time", "old", "future", "no signature", "nothing", "other scheme"]
)
def test_it_believes_nothing_else(believes, change):
    secret, now = "whs_a", 1_800_000_000
    header, body, at = signature(secret, BODY, now), BODY, now + 1
    if change == "secret":
        secret = "whs_b"
    elif change == "body":
        body += b" "
    elif change == "time":
        header = header.replace(f"t={now}", f"t={now + 1}")
    elif change == "old":
        at += 400
    elif change == "future":
        at -= 400
    else:
        header = {"no signature": f"t={now}", "nothing": "", "other scheme": header.replace("v1=", "v0=")}[change]
    assert not believes(secret, header, body, now=at)


def test_the_documented_message_has_the_fields_of_a_real_one():
    import json
    from datetime import UTC, datetime

    from proxy.alerts import messages
    from tenants.models import Limit, Tenant

    (example,) = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
    row = Limit(id=7, scope="tenant", tenant=Tenant(name="acme"), metric="cost", window="month")
    window = (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
    made = messages.alert(row, None, 80, 25_500_000_000, 20_400_000_000, window)
    assert {**made, "text": ""} == {**{name: example[name] for name in made}, "text": ""}
    assert set(example) - set(made) == {"id", "created"}
    assert made["text"].startswith(example["text"].rstrip("…"))
