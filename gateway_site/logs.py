"""How log lines look."""

import logging


class OneLineFormatter(logging.Formatter):
    """`time level logger message`, with control characters of hostile values escaped (threat T11)."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in self.formatMessage(record))
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line
