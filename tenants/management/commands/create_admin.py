import os
import sys
from getpass import getpass
from pathlib import Path
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.management.base import CommandParser

from tenants.management.administration import AdministrationCommand, Refused, Result
from tenants.models import User


class Command(AdministrationCommand):
    help = (
        "Creates an administrator. The password is taken from --password, else from the environment variable "
        "ADMIN_PASSWORD (or the file ADMIN_PASSWORD_FILE), else from a line of standard input."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", nargs="?", default="admin", help="User name to sign in with (default: admin).")
        parser.add_argument("--email", default="")
        parser.add_argument("--password", help="Visible to every process of this machine while the command runs.")

    def administer(self, *, name: str, email: str, password: str | None, **options: Any) -> Result:
        if user := User.objects.filter(username=name).first():
            return self.existing(user)
        password = password or password_given()
        user = User(username=name, email=email, is_staff=True, is_superuser=True)
        validate_password(password, user)
        user.set_password(password)
        user.full_clean()
        user.save()
        return Result(f"Created the administrator {user}.", {"admin": user.username, "id": user.pk})

    def existing(self, user: User) -> Result:
        # Neither rights nor password are changed: a container that runs this at each start must not undo
        # what was decided in the pages since.
        if not user.is_superuser:
            raise Refused(f"“{user}” is a user without administrator's rights. Choose another name.")
        if not user.is_active:
            raise Refused(f"The administrator “{user}” is switched off. Switch them on in the admin.")
        return Result(
            f"The administrator {user} exists; to change the password: manage.py changepassword {user}",
            {"admin": user.username, "id": user.pk},
            changed=False,
        )


def password_given() -> str:
    password = os.environ.get("ADMIN_PASSWORD", "")
    if file := os.environ.get("ADMIN_PASSWORD_FILE"):
        try:
            password = Path(file).read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise Refused(f"ADMIN_PASSWORD_FILE={file!r}: {exc.strerror}. Name a file that can be read.") from exc
    if not password:
        password = getpass("Password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise Refused("No password was given. Set ADMIN_PASSWORD, or write it to standard input.")
    return password
