import getpass
import os
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from gateway_site import services
from gateway_site.environment import data_home
from gateway_site.services import LABEL, NAME, Service
from tenants.management.administration import Refused

TEXTS = {"systemd": services.systemd, "launchd": services.launchd, "windows": services.windows}


class Command(BaseCommand):
    help = (
        "Has this machine start the gateway by itself: for you, or as root for a user of its own. Whatever follows -- "
        "is handed to serve."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--print", action="store_true", help="Print it, and put nothing anywhere.")
        own = "launchd" if sys.platform == "darwin" else "systemd"
        parser.add_argument(
            "--system", choices=TEXTS, default=own, help="windows: a task that starts it in WSL (default: %(default)s)."
        )
        parser.add_argument("--user", default="", help="Whom it runs as. As root: ollama-gateway, unless you say.")
        parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="Of serve, e.g. -- --port 9000")

    def handle(self, *, print: bool, system: str, user: str, arguments: list[str], **options: Any) -> str | None:
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        if user and not is_root and not print:
            raise Refused("Only root may start it as another user: leave out --user, or use sudo.")
        user = user or (NAME if is_root and system != "windows" else "")
        service = Service(services.own_program(settings.BASE_DIR), _data(user), user, arguments)
        if user and Path("/root") in Path(service.program[-1]).parents:
            self.stderr.write(
                f"{service.program[-1]} lies where {user} cannot read. Install it elsewhere, e.g. with "
                "UV_TOOL_DIR=/opt UV_TOOL_BIN_DIR=/usr/local/bin uv tool install ."
            )
        text = TEXTS[system](service)
        if print or system == "windows":
            return text
        place, next_step = _place(system, service)
        _put(place, text)
        return f"{place} is written. Start it with: {next_step}"


def _data(user: str) -> Path:
    """Where data is kept: of a user of its own not in the home of whoever installs it, unless DATA_DIR says so."""
    is_default = data_home().expanduser().resolve() == settings.DATA_DIR
    return services.STATE / NAME if user and is_default else settings.DATA_DIR


def _place(system: str, service: Service) -> tuple[Path, str]:
    """Where the system looks, and what starts it."""
    if system == "launchd":
        home = Path("/Library/LaunchDaemons") if service.user else Path("~/Library/LaunchAgents").expanduser()
        path = home / f"{LABEL}.plist"
        return path, f"launchctl load -w {path}"
    if service.user:
        make = f"useradd --system --home-dir {service.data} {service.user}; " if not _exists(service.user) else ""
        unit = f"systemctl daemon-reload && systemctl enable --now {NAME}"
        return Path(f"/etc/systemd/system/{NAME}.service"), make + unit
    lasting = f"loginctl enable-linger {getpass.getuser()}"
    unit = f"systemctl --user daemon-reload && systemctl --user enable --now {NAME} && {lasting}"
    return Path(f"~/.config/systemd/user/{NAME}.service").expanduser(), unit


def _exists(user: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _put(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise Refused(f"{path} is there and says something else. Compare it with --print, then remove it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise Refused(f"{path} cannot be written ({exc.strerror}).") from None
