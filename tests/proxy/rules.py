"""Snapshots made by hand: what a row of the tables becomes, without a database."""

from ipaddress import ip_address

from proxy.admission import Admission
from proxy.limits import Rule
from proxy.snapshot import KeyRow, Snapshot, Tables
from tenants.keys import digest, make_clear_text

PEPPER = b"a pepper"
NOW = 1_800_000_000.0
ADMISSION = Admission(b"authorization", PEPPER)
LOOPBACK = ip_address("127.0.0.1")


def key_row(key_id=1, prefix="aaaaaaaa", **fields):
    return KeyRow(
        **{
            "id": key_id,
            "name": f"key {key_id}",
            "prefix": prefix,
            "tenant_id": 1,
            "user_id": None,
            "previous_expires_at": None,
            "enabled": True,
            "expires_at": None,
            "revoked": False,
            "models": (),
            "rights": (True, True, False, False, False),
            "max_output_tokens": None,
            **fields,
        }
    )


def limit(rule_id=1, **fields):
    return Rule(
        **{
            "id": rule_id,
            "metric": "requests",
            "window": "day",
            "seconds": 0,
            "amount": 10,
            "enforced": True,
            "model": "",
            "per_address": False,
            "subject": "somebody",
            **fields,
        }
    )


def new_key(**fields):
    """(row, its clear text as bytes, its entry in `digests`)"""
    prefix, clear_text = make_clear_text()
    row = key_row(**{"prefix": prefix, **fields})
    return row, clear_text.encode(), {digest(clear_text.encode(), PEPPER): (row.id, False)}


def snapshot(*rows, digests=None, now=NOW, **tables):
    return Snapshot(
        Tables(
            **{
                "tenants": {1: ("acme", True), 2: ("other", True), 3: ("closed", False)},
                "users": {1: ("ann", True), 2: ("gone", False)},
                "keys": {row.id: row for row in rows},
                "digests": {} if digests is None else digests,
                **tables,
            }
        ),
        now,
    )
