"""Subjects of mails."""

LONGEST = 200  # characters


def one_line(text: str) -> str:
    """Fit for a subject: the names that people choose may hold what ends a line, by which no mail would be sent."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:LONGEST]
