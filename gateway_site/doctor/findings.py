from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """`text`: what is so. `mend`: what to do, empty where nothing is wrong."""

    level: Level
    text: str
    mend: str = ""


def ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def note(text: str, mend: str = "") -> Finding:
    return Finding(Level.NOTE, text, mend)


def warning(text: str, mend: str) -> Finding:
    return Finding(Level.WARNING, text, mend)


def problem(text: str, mend: str = "") -> Finding:
    return Finding(Level.PROBLEM, text, mend)
