"""Django's command line, of manage.py and of the console script: a setting that cannot be is one line there."""

import os
import sys

from gateway_site.environment import WrongSetting

REFUSED = 1


def run_command(words: list[str]) -> int:
    """Runs the command that `words` name, the program's own name first; the exit code. Most commands do not return."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_site.settings")
    from django.conf import settings
    from django.core.management import execute_from_command_line

    try:
        # Loads them. Django itself would hide a mistake in them at first, and call our commands unknown.
        settings.INSTALLED_APPS  # noqa: B018
        execute_from_command_line(words)
    except WrongSetting as exc:
        return refused(exc)
    return 0


def refused(mistake: WrongSetting) -> int:
    """The exit code."""
    print(f"Refused: {mistake}", file=sys.stderr)
    return REFUSED
