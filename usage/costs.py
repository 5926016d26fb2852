"""What one call costs: whole numbers in, whole nano-units out. Pure; money is rounded here and nowhere else."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase

# The smallest share of a nano-unit that a formula can produce is one of these: 10⁶ tokens (or microseconds) times the
# 3.6 × 10⁶ watt-seconds of a kWh. Everything is added up in such shares and rounded once.
_PER_MILLION = 1_000_000
_WATT_SECONDS_PER_KWH = 3_600_000
_SHARES = _PER_MILLION * _WATT_SECONDS_PER_KWH


# A million of the currency for one call. Beyond it a price is a slip, and sums of such costs would leave their column.
MAX_COST = 10**15


@dataclass(frozen=True, slots=True)
class PriceRow:
    """One row of usage.Price. `model` is a canonical name or a pattern, in lower case; `backend` may be empty."""

    id: int
    model: str
    valid_from: datetime
    backend: str = ""
    input_nano: int = 0
    output_nano: int = 0
    gpu_second_nano: int = 0
    kwh_nano: int = 0
    watts: int = 0


def cost_nano(price: PriceRow, prompt_tokens: int, completion_tokens: int, gpu_us: int) -> int:
    """The sum of four parts, in nano-units, rounded half to even:

    prompt tokens × input ÷ 10⁶ + completion tokens × output ÷ 10⁶
    + GPU seconds × price of a GPU-second + GPU seconds × watts ÷ 3.6 × 10⁶ × price of a kWh
    """
    per_million = prompt_tokens * price.input_nano + completion_tokens * price.output_nano
    per_million += gpu_us * price.gpu_second_nano
    return _rounded(per_million * _WATT_SECONDS_PER_KWH + gpu_us * price.watts * price.kwh_nano)


def charged(price: PriceRow | None, prompt_tokens: int, completion_tokens: int, gpu_us: int) -> int | None:
    """What stands on the record of a call; None without a price."""
    return None if price is None else min(cost_nano(price, prompt_tokens, completion_tokens, gpu_us), MAX_COST)


def _rounded(shares: int) -> int:
    whole, rest = divmod(shares, _SHARES)
    if 2 * rest > _SHARES or (2 * rest == _SHARES and whole % 2):
        whole += 1
    return whole


def pick(prices: Iterable[PriceRow], model: str, backend: str, at: datetime) -> PriceRow | None:
    """The price of a model, by its canonical name, on a backend at a moment; None is "no price", not 0.

    The exact name beats the longest pattern that fits, then a price of this backend beats one for all, then the
    newest counts.
    """
    fitting = [
        price
        for price in prices
        if price.valid_from <= at
        and price.backend in ("", backend)
        and (price.model == model or fnmatchcase(model, price.model))
    ]
    return max(fitting, key=lambda price: _precedence(price, model), default=None)


def _precedence(price: PriceRow, model: str) -> tuple[bool, int, bool, datetime, int]:
    return price.model == model, len(price.model), bool(price.backend), price.valid_from, price.id
