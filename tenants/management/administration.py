"""What all commands of the shell administration have in common, so that scripts can rely on it (design §10).

One result on stdout, with --json as one JSON object; exit 0 done, also when it already was so; 1 refused, with one
line on stderr that says what to do next; 2 wrong usage. That line begins with "Refused:", whatever the command.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, time
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, IntegrityError, models, transaction
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from tenants.models import ApiKey, Tenant, User

# Of the names that there are, in a refusal of one that there is not.
MOST_NAMED = 20


class Refused(CommandError):
    """What was asked for is not done. The text is one sentence on why, and one on what to do next.

    `further`: lines of their own, where there is more than one thing to say.
    """

    def __init__(self, message: str, *further: str, returncode: int = 1) -> None:
        super().__init__("\n".join(map(one_line, (message, *further))), returncode=returncode)


class WrongUsage(CommandError):
    """Options that do not fit each other, where argparse cannot tell. To who runs the command it is a refusal."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message), returncode=2)


@dataclass(frozen=True)
class Result:
    """`text` for people; `data` is what --json prints, with whether anything was changed."""

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    changed: bool = True

    def as_json(self) -> str:
        return json.dumps({**self.data, "changed": self.changed}, ensure_ascii=False, default=str)


class AdministrationCommand(BaseCommand):
    # A command that sets one row must not fail because of, or wait for, checks of everything else.
    requires_system_checks = []
    # Whether its text is a report, whose lines it has made harmless itself.
    several_lines = False

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.add_argument("--json", action="store_true", help="Print the result as one JSON object.")
        return parser

    def handle(self, *args: Any, **options: Any) -> str:
        with refusals(), transaction.atomic():
            result = self.administer(**options)
        if options["json"]:
            return result.as_json()
        return result.text if self.several_lines else one_line(result.text)

    def administer(self, **options: Any) -> Result:
        """Does it, inside a transaction. Raises Refused, WrongUsage or ValidationError."""
        raise NotImplementedError


@contextmanager
def refusals() -> Iterator[None]:
    """Foreign exceptions become refusals here, so that bad input never ends in a traceback."""
    try:
        yield
    except WrongUsage as exc:
        # Django prints the name of the class.
        raise Refused(str(exc), returncode=2) from None
    except ValidationError as exc:
        raise Refused(explanation(exc)) from exc
    except IntegrityError as exc:
        raise Refused(f"The database refused it ({exc}). Was it changed at the same moment? Try again.") from exc
    except DatabaseError as exc:
        raise Refused(f"The database cannot do it ({exc}). Check DATABASE_URL, and run: manage.py migrate") from exc
    except UnicodeError as exc:
        raise Refused("Some of the text is not UTF-8. Check the encoding of your terminal.") from exc


def explanation(error: ValidationError) -> str:
    """All messages in a line, each with the field it is about."""
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    return " ".join(
        message if name == "__all__" else f"{name.replace('_', ' ')}: {message}"
        for name, messages in error.message_dict.items()
        for message in messages
    )


def one_line(text: str) -> str:
    """Line breaks become blanks; control characters and escapes of hostile names are never printed raw."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(text.split()))


def save_changes(row: models.Model, **values: Any) -> bool:
    """Sets and saves what differs, validated; whether anything did."""
    different = row._state.adding
    for name, value in values.items():
        different |= getattr(row, name) != value
        setattr(row, name, value)
    row.full_clean()
    if different:
        row.save()
    return different


def tenant_named(name: str, *, archived: bool = False) -> Tenant:
    """`archived`: also one that is archived, for what is done with tenants that there are."""
    tenant = Tenant.objects.filter(name=name).first()
    if tenant is None and archived:
        known = list(Tenant.objects.order_by("name").values_list("name", flat=True)[: MOST_NAMED + 1])
        more = " …" if len(known) > MOST_NAMED else ""
        raise Refused(f"There is no tenant “{name}”. There are: {', '.join(known[:MOST_NAMED]) or 'none'}{more}.")
    if tenant is None:
        raise Refused(f"There is no tenant “{name}”. Create it with: manage.py create_tenant {name}")
    if tenant.archived_at and not archived:
        raise Refused(f"The tenant “{name}” is archived. Restore it in the admin, or use another.")
    return tenant


def user_named(name: str) -> User:
    user = User.objects.filter(username=name).first()
    if user is None:
        raise Refused(
            f"There is no user “{name}”. Create them with: manage.py create_user {name} --tenant TENANT --role member"
        )
    return user


def key_with_prefix(text: str) -> ApiKey:
    """By the part between the underscores; a whole key is taken too, for whoever has only that."""
    prefix = text.removeprefix("ogw_").split("_")[0]
    key = ApiKey.objects.filter(prefix=text).first() or ApiKey.objects.filter(prefix=prefix).first()
    if key is None:
        raise Refused(f"There is no key with the prefix “{prefix[:16]}”. They are shown by: manage.py list_keys --all")
    return key


def usable_key(text: str) -> ApiKey:
    key = key_with_prefix(text)
    if key.revoked_at:
        raise Refused(f"The key {key.prefix} is revoked. Use another, or make one with: manage.py create_key")
    return key


def moment(text: str) -> datetime:
    """An argparse type: ISO 8601; without an offset it is in TIME_ZONE, a date alone is its midnight."""
    try:
        at = parse_datetime(text) if "T" in text or " " in text else None
        if at is None and (day := parse_date(text)) is not None:
            at = datetime.combine(day, time.min)
    except ValueError:
        at = None
    if at is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no date or time: write 2026-12-31 or 2026-12-31T23:59:00+01:00")
    try:
        at = at if timezone.is_aware(at) else timezone.make_aware(at)
        at.astimezone(timezone.get_fixed_timezone(0))
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range") from None
    return at
