"""Typed readers of the environment, each name also as NAME_FILE. For settings.py, and for the client in cli.py, which
has no settings."""

import os
import re
import secrets
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.core.exceptions import ImproperlyConfigured


class WrongSetting(ImproperlyConfigured):
    """A variable that cannot be. Its text is the one line for the operator (command_line.py)."""


def text(name: str, default: str = "") -> str:
    """The variable, or the content of the file that NAME_FILE names (container secrets)."""
    if file := os.getenv(f"{name}_FILE"):
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise WrongSetting(f"{name}_FILE={file!r}: {exc.strerror}") from exc
        except UnicodeError:
            raise WrongSetting(f"{name}_FILE={file!r}: it is not UTF-8") from None
    return os.getenv(name, default)


def data_home() -> Path:
    """Where data is kept if DATA_DIR does not say: beside the program, or per user where the program is installed as a
    tool and nothing is to be written beside it."""
    source = Path(__file__).resolve().parent.parent
    return source / "data" if (source / "manage.py").exists() else Path("~/.local/share/ollama-gateway")


def flag(name: str, default: bool) -> bool:
    value = text(name, str(default))
    if value not in ("True", "False"):
        raise WrongSetting(f"{name}={value!r}: use True or False")
    return value == "True"


def integer(name: str, default: int, minimum: int = 0) -> int:
    value = text(name, str(default))
    try:
        number = int(value)
    except ValueError:
        raise WrongSetting(f"{name}={value!r}: use a whole number") from None
    if number < minimum:
        raise WrongSetting(f"{name}={value!r}: use {minimum} or more")
    return number


def seconds(name: str, default: float, *, minimum: float = 0) -> float:
    value = text(name, str(default))
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not minimum <= number < float("inf"):
        raise WrongSetting(f"{name}={value!r}: use a number of seconds, {minimum} or more")
    return number


def share(name: str, default: float) -> float:
    value = seconds(name, default)
    if value > 1:
        raise WrongSetting(f"{name}={value}: use a number from 0 to 1")
    return value


def pairs(name: str) -> list[tuple[str, str]]:
    """`name=value,name=value`, percent-encoded, as OpenTelemetry writes headers."""
    found = []
    for item in items(name):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            # Without the value, which may be a secret.
            raise WrongSetting(f"{name}: write it like name=value,name=value")
        found.append((key.strip().lower(), unquote(value.strip())))
    return found


def choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    value = text(name, default)
    for known in choices:
        if value.lower() == known.lower():
            return known
    raise WrongSetting(f"{name}={value!r}: use {', '.join(choices[:-1])} or {choices[-1]}")


def port(name: str, default: int) -> int:
    """0: the system chooses, or none where the setting says so."""
    number = integer(name, default)
    if number > 65535:
        raise WrongSetting(f"{name}={number}: use a port from 0 to 65535")
    return number


def matching(name: str, default: str, pattern: str, example: str) -> str:
    """A text of a form, e.g. a path. The whole of it must match."""
    value = text(name, default)
    if not re.fullmatch(pattern, value):
        raise WrongSetting(f"{name}={value!r}: write it like {example}")
    return value


def time_zone(name: str, default: str) -> str:
    value = text(name, default)
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise WrongSetting(f"{name}={value!r}: use a name such as Europe/Berlin or UTC") from None
    return value


def url(name: str, default: str = "") -> str:
    """Without a slash at its end."""
    value = text(name, default).rstrip("/")
    try:
        urlsplit(value)
    except ValueError:
        raise WrongSetting(f"{name}={value!r}: write it like https://gateway.example") from None
    return value


def items(name: str, default: str = "") -> list[str]:
    return [item.strip() for item in text(name, default).split(",") if item.strip()]


def networks(name: str, default: str = "", besides: str = "") -> tuple[IPv4Network | IPv6Network, ...]:
    """`besides`: a word that may stand among them, and is left out here."""
    try:
        return tuple(ip_network(item) for item in items(name, default) if item != besides)
    except ValueError as exc:
        raise WrongSetting(f"{name}: {exc}") from None


@dataclass(frozen=True, slots=True)
class MailServer:
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    starttls: bool
    tls: bool


def mail_server(name: str) -> MailServer:
    """`smtp://host`, `smtp+tls://user:password@host:587` (STARTTLS) or `smtps://user:password@host` (TLS)."""
    ports = {"smtp": 25, "smtp+tls": 587, "smtps": 465}
    try:
        parts = urlsplit(text(name))
        port = parts.port or ports[parts.scheme]
    except (KeyError, ValueError):
        # Without the value: it holds a password.
        raise WrongSetting(f"{name}: use smtp://, smtp+tls:// or smtps://user:password@host:port") from None
    if not parts.hostname:
        raise WrongSetting(f"{name}: it names no host")
    return MailServer(
        parts.hostname,
        port,
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        starttls=parts.scheme == "smtp+tls",
        tls=parts.scheme == "smtps",
    )


def kept_secret(name: str, directory: Path) -> str:
    """The variable, else a random value made at the first start and kept in the data directory."""
    if value := text(name):
        return value
    path = directory / name.lower()
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise WrongSetting(f"{name}: {str(path)!r}, where it is kept: {exc.strerror}") from None
    # Written beside and linked: of several processes that start at once, one wins and all read the same value.
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.touch(mode=0o600)
    except OSError as exc:
        raise WrongSetting(f"DATA_DIR={str(directory)!r}: {exc.strerror}. Name a directory to write into") from None
    draft.write_text(secrets.token_urlsafe(48), encoding="ascii")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    draft.unlink()
    return path.read_text(encoding="ascii")
