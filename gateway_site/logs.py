"""How log lines look."""

import logging
import re
from contextvars import ContextVar

# Somebody will put a key where none belongs, into a path that Django finds nowhere and logs. The public part stays.
_KEY = re.compile(r"\b(ogw_[0-9A-Za-z]{8}_)[0-9A-Za-z]+")
# Imported keys have any form; where they may stand is known.
_PATH_KEY = re.compile(r"(/k/)(?!ogw_[0-9A-Za-z]{8}_…)[^/\s]+", re.IGNORECASE)

# Of the page that is being made, if any (gateway_site/page_headers.py).
request_id: ContextVar[str] = ContextVar("request_id", default="")


def _visible(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class OneLineFormatter(logging.Formatter):
    """`time level logger message`, with keys cut short and control characters of hostile values escaped (L7, T11)."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        if page := request_id.get():
            record.message += f" [request {page}]"
        line = _visible(self.formatMessage(record))
        if record.exc_info:
            # Indented: what an exception says may have lines of its own, which must not look like those of the log.
            told = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n    {_visible(part)}" for part in told)
        return _PATH_KEY.sub(r"\1…", _KEY.sub(r"\1…", line))
