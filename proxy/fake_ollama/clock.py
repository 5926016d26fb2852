"""Times as Go prints them, and durations as Go reads them."""

import re
import time
from datetime import datetime

from proxy.fake_ollama.gojson import DecodeError

FOREVER = float("inf")
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


class Stamps:
    """created_at: UTC with up to nine digits. The part up to the second is made once a second."""

    second = -1
    prefix = ""
    date = b""

    @classmethod
    def _turn(cls, second: int) -> None:
        now = time.gmtime(second)
        cls.second = second
        cls.prefix = time.strftime("%Y-%m-%dT%H:%M:%S", now)
        cls.date = time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n", now).encode()

    @classmethod
    def now(cls) -> str:
        second, nanos = divmod(time.time_ns(), 1_000_000_000)
        if second != cls.second:
            cls._turn(second)
        digits = f"{nanos:09d}".rstrip("0")
        return f"{cls.prefix}.{digits}Z" if digits else f"{cls.prefix}Z"

    @classmethod
    def date_header(cls) -> bytes:
        second = int(time.time())
        if second != cls.second:
            cls._turn(second)
        return cls.date


def local_time(moment: datetime) -> str:
    """modified_at and expires_at carry the server's offset."""
    text = moment.astimezone().isoformat()
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def parse_keep_alive(value: object) -> float | None:
    """Seconds; a negative value means for ever, None keeps what the runner has."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise DecodeError(f"Unsupported type: '{go_type(value)}'")
    seconds = parse_duration(value) if isinstance(value, str) else float(value)
    return FOREVER if seconds < 0 else seconds


def parse_duration(text: str) -> float:
    body = text.lstrip("+-") if text[:1] in "+-" else text
    if body == "0":
        return 0.0
    if not body or DURATION.sub("", body):
        plain = re.fullmatch(r"\d+\.?\d*|\.\d+", body)
        kind = "missing unit in" if plain else "invalid"
        raise DecodeError(f'time: {kind} duration "{text}"')
    seconds = sum(float(number) * UNITS[unit] for number, unit in DURATION.findall(body))
    return -seconds if text.startswith("-") else seconds


def go_type(value: object) -> str:
    return {bool: "bool", dict: "map[string]interface {}", list: "[]interface {}"}.get(type(value), "string")
