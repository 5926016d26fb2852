"""What a config.json says, checked. Pure, and without Django's settings, which are made from it."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

from proxy.backend_url import normalise_backend_url

MAX_BYTES = 1 << 20
# What a credential of another form must be long to be looked up at all (proxy/admission.py).
SHORTEST_KEY, LONGEST_KEY = 16, 256

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_LISTEN = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]/\s]*)):([0-9]{1,5})", re.IGNORECASE)
_METRICS_PATH = re.compile(r"/(?!api/|v1/|k/|admin/)[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")
_NAMESPACE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

T = TypeVar("T")


class _Wrong(ValueError):
    """What is to be written in place of a value."""


class BadConfig(ValueError):
    """`problems`: one line each, with the field."""

    def __init__(self, *problems: str) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class RateLimit:
    requests: int
    seconds: int
    enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigJson:
    """None: the file does not say."""

    servers: tuple[str, ...] | None = None  # normalised URLs
    listen: tuple[str, int] | None = None
    logging: bool | None = None
    auth_header: str | None = None
    keys: tuple[str, ...] | None = field(default=None, repr=False)
    rate_limit: RateLimit | None = None
    allow: tuple[str, ...] | None = None  # networks
    deny: tuple[str, ...] | None = None
    metrics_enabled: bool | None = None
    metrics_path: str | None = None
    metrics_namespace: str | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the settings are where no variable says otherwise."""

    host: str
    port: int
    auth_header: str
    access_log: bool
    log_level: str
    metrics_enabled: bool
    metrics_path: str
    metrics_namespace: str


def defaults_of(config: ConfigJson) -> Defaults:
    host, port = config.listen or ("127.0.0.1", 8080)
    return Defaults(
        host=host,
        port=port,
        auth_header=config.auth_header or "Authorization",
        access_log=config.logging is True,
        # Failures are told all the same: who switches logging off does not want to be left in the dark.
        log_level="WARNING" if config.logging is False else "INFO",
        metrics_enabled=config.metrics_enabled is not False,
        metrics_path=config.metrics_path or "/metrics",
        metrics_namespace=config.metrics_namespace or "gateway",
    )


def without_keys(config: ConfigJson) -> ConfigJson:
    """For what outlives the reading: secrets must not lie around."""
    return replace(config, keys=None)


def read(path: str | os.PathLike[str]) -> ConfigJson:
    """Raises BadConfig with everything that is wrong with a file."""
    name = Path(path)
    if name.is_dir():
        raise BadConfig(
            f"{path} is a directory, which Docker makes where the file to mount does not exist. Create the file first."
        )
    try:
        with name.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise BadConfig(f"{path} cannot be read: {exc.strerror}.") from None
    if len(raw) > MAX_BYTES:
        raise BadConfig(f"{path} is larger than {MAX_BYTES >> 20} MiB. That is no config.json.")
    try:
        said = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise BadConfig(f"{path} is not UTF-8.") from None
    except BadConfig:
        raise
    except (ValueError, RecursionError) as exc:
        raise BadConfig(f"{path} is not JSON: {exc}.") from None
    return parse(said)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Go takes the names of fields in any case."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name.lower() in found:
            raise BadConfig(f"{name} stands there twice. Keep one.")
        found[name.lower()] = value
    return found


def _no_number(text: str) -> None:
    raise BadConfig(f"{text} is not JSON.")


def parse(said: object) -> ConfigJson:
    """`said`: the parsed JSON, with names in lower case. Raises BadConfig."""
    if not isinstance(said, dict):
        raise BadConfig("The file holds no object: it begins with { and ends with }.")
    fields = _Fields(said)
    limit, security, metrics = (fields.part(name) for name in ("rateLimit", "security", "metrics"))
    config = ConfigJson(
        servers=fields.each("ollamaAddresses", _server),
        listen=fields.one("gatewayAddress", _listening),
        logging=fields.one("logging", _flag),
        auth_header=fields.one("authHeaderName", _header),
        keys=fields.each("apiKeys", _key),
        rate_limit=_rate_limit(limit),
        allow=security.each("allowIps", _network),
        deny=security.each("denyIps", _network),
        metrics_enabled=metrics.one("enabled", _flag),
        metrics_path=metrics.one("endpoint", _path),
        metrics_namespace=metrics.one("namespace", _namespace),
        unknown=tuple(name for part in (fields, limit, security, metrics) for name in part.not_asked_for()),
    )
    if fields.problems:
        raise BadConfig(*fields.problems)
    return config


class _Fields:
    """The fields of an object; what is wrong with them is collected."""

    def __init__(self, said: dict[str, Any], of: str = "", problems: list[str] | None = None) -> None:
        self._said = said
        self._of = of
        self._asked: set[str] = set()
        self.problems = [] if problems is None else problems

    def one(self, name: str, read: Callable[[Any], T]) -> T | None:
        value = self._take(name)
        return None if value is None else self._read(f"{self._of}{name}", value, read)

    def each(self, name: str, read: Callable[[Any], T]) -> tuple[T, ...] | None:
        """The values of a list, each once. Go writes an empty one as null, which says nothing."""
        values = self._take(name)
        if values is None:
            return None
        if not isinstance(values, list):
            self.problems.append(f"{self._of}{name}: write a list, as in [].")
            return None
        found = [self._read(f"{self._of}{name}[{number}]", value, read) for number, value in enumerate(values)]
        return tuple(dict.fromkeys(value for value in found if value is not None))

    def part(self, name: str) -> "_Fields":
        value = self._take(name)
        if value is not None and not isinstance(value, dict):
            self.problems.append(f"{name}: write an object, as in {{}}.")
        return _Fields(value if isinstance(value, dict) else {}, f"{name}.", self.problems)

    def not_asked_for(self) -> list[str]:
        return [f"{self._of}{name}" for name in self._said if name not in self._asked]

    def _take(self, name: str) -> Any:
        self._asked.add(name.lower())
        return self._said.get(name.lower())

    def _read(self, name: str, value: Any, read: Callable[[Any], T]) -> T | None:
        try:
            return read(value)
        except ValueError as exc:
            self.problems.append(f"{name}: {exc}")
            return None


def _rate_limit(fields: _Fields) -> RateLimit | None:
    requests, seconds = fields.one("maxRequests", _amount), fields.one("timeWindowSeconds", _seconds)
    enabled = fields.one("enabled", _flag)
    if requests is None and seconds is None and enabled is None:
        return None
    if requests is None or seconds is None:
        if enabled and not fields.problems:
            fields.problems.append("rateLimit: give both maxRequests and timeWindowSeconds.")
        return None
    return RateLimit(requests, seconds, bool(enabled))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong('write a text, in "quotes".')
    return value.strip()


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("write true or false.")
    return value


def _amount(value: Any, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 2**31 - 1:
        raise _Wrong(f"write a whole number, {least} or more.")
    return value


def _seconds(value: Any) -> int:
    return _amount(value, 1)


def _server(value: Any) -> str:
    text = _text(value)
    return normalise_backend_url(text if "://" in text else f"http://{text}")


def _listening(value: Any) -> tuple[str, int]:
    match = _LISTEN.fullmatch(_text(value))
    if match is None or int(match[3]) > 65535:
        raise _Wrong("write HOST:PORT, as in 0.0.0.0:8080, or :8080 for all addresses.")
    return match[1] or match[2] or "0.0.0.0", int(match[3])  # noqa: S104 - what Go's listeners mean by it


def _header(value: Any) -> str:
    text = _text(value)
    if not _TOKEN.fullmatch(text):
        raise _Wrong("this cannot be the name of a header.")
    return text


def _key(value: Any) -> str:
    # Never shown, whatever is wrong with it.
    text = _text(value)
    # It may be sent without its padding.
    length = len(text.rstrip("="))
    if not SHORTEST_KEY <= length <= LONGEST_KEY:
        raise _Wrong(f"a key has {SHORTEST_KEY} to {LONGEST_KEY} characters here, this one has {length}. Replace it.")
    if not text.isascii() or not all("!" <= char <= "~" for char in text):
        raise _Wrong("a key is of printable ASCII characters, without blanks. Replace it.")
    return text


def _network(value: Any) -> str:
    text = _text(value)
    try:
        # With host bits, as Go takes it: the network is meant.
        return str(ip_network(text, strict=False))
    except ValueError:
        raise _Wrong(f"{text!r} is no address and no network such as 10.0.0.0/8.") from None


def _path(value: Any) -> str:
    text = _text(value)
    if not _METRICS_PATH.fullmatch(text):
        raise _Wrong("write a path, as in /metrics; /api/, /v1/, /k/ and /admin/ have other uses.")
    return text


def _namespace(value: Any) -> str:
    text = _text(value)
    if not _NAMESPACE.fullmatch(text):
        raise _Wrong("write letters, digits and _, as in gateway.")
    return text
