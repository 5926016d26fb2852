"""Writes what there is as a file that can be applied: here it changes nothing, elsewhere it makes the same. Without
secrets."""

from pathlib import Path
from typing import Any, TextIO

import yaml

from proxy.declared.kinds import KINDS
from proxy.declared.world import World
from tenants.models import IPRule, Limit

HEAD = """\
# What this gateway is configured to do. To have it so elsewhere: manage.py apply FILE
# Without secrets: of keys the prefix tells which they are, and where there are none they are made anew.
"""


def export(out: TextIO) -> None:
    out.write(HEAD)
    world = World({}, Path())
    empty = True
    for made in KINDS:
        kind = made(world)
        kind.load()
        rows = [row for row in kind.rows.values() if kind.is_exported(row)]
        entries: Any = [kind.described(row) for row in rows]
        if not kind.required:
            entries = next(iter(entries), {})
        if entries:
            empty = False
            out.write("\n")
            yaml.dump(
                {kind.section: entries}, out, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=10_000
            )
        if kind.twins:
            out.write(f"# {len(kind.twins)} more of {kind.section} say what others say already: {_named(kind)}\n")
    if empty:
        out.write("\n{}\n")
    limits, rules = Limit.objects.exclude(managed_by=None).count(), IPRule.objects.filter(by_owners=True).count()
    if limits or rules:
        out.write(
            f"\n# Not in here, being theirs: limits that owners of tenants set ({limits}), and IP rules ({rules}).\n"
        )


def _named(kind: Any) -> str:
    names = sorted({str(kind.name_of(row)) for row in kind.twins})[:20]
    return "; ".join(name if name.isprintable() else repr(name) for name in names)


class PlainDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: object) -> bool:
        """What is said twice is written twice."""
        return True
