"""Money as people write it, and as it is kept: whole nano-units (10⁻⁹) of the one currency. No floats."""

from decimal import Decimal, InvalidOperation

from django.conf import settings

DIGITS = 9
ONE = 10**DIGITS
# What a 64-bit column holds.
MAXIMUM = 2**63 - 1


def to_nano(text: str | Decimal) -> int:
    """Nano-units of a decimal number of currency units. Raises ValueError saying what to write instead."""
    try:
        number = text if isinstance(text, Decimal) else Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal number such as 0.15.") from None
    if not number.is_finite() or number < 0:
        raise ValueError(f"{text} is not an amount of money: use 0 or more.")
    # Not by arithmetic on Decimals: it rounds to the 28 digits of the context without a word.
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    shift = exponent + DIGITS
    if shift > 40:
        raise ValueError(f"{text} is more than the most that can be kept.")
    coefficient = int("".join(map(str, digits)))
    if shift < 0:
        coefficient, rest = divmod(coefficient, 10 ** min(-shift, 10_000))
        if rest:
            raise ValueError(f"{text} has more than {DIGITS} decimals.")
    else:
        coefficient *= 10**shift
    if coefficient > MAXIMUM:
        raise ValueError(f"{text} is more than the most that can be kept.")
    return coefficient


def shown(nano: int) -> str:
    """The shortest exact decimal: 150000000 → "0.15"."""
    whole, rest = divmod(abs(nano), ONE)
    decimals = f"{rest:0{DIGITS}d}".rstrip("0")
    return f"{'-' if nano < 0 else ''}{whole}{'.' if decimals else ''}{decimals}"


def with_currency(nano: int) -> str:
    """150000000 → "0.15 EUR"."""
    return f"{shown(nano)} {settings.GATEWAY.currency}"
