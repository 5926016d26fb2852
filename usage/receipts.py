"""The cost of one call step by step, with every number that went into it: whoever recomputes it by hand gets the same
nano-unit. Pure; the rule itself is usage/costs.py."""

from dataclasses import dataclass
from fractions import Fraction

from tenants import money
from usage.costs import PriceRow, cost_nano
from usage.models import Price, UsageRecord

MILLION = 1_000_000
WATT_SECONDS_PER_KWH = 3_600_000


@dataclass(frozen=True, slots=True)
class Part:
    """`formula`: in whole numbers and decimals of the currency; `nano`: its result in nano-units, not rounded."""

    name: str
    formula: str
    nano: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """`sum`: of the parts, not rounded. `cost_nano`: rounded once, half to even. `recorded`: what the record says.
    `gpu`: how the GPU time comes about; empty where nothing depends on it."""

    price: Price
    parts: tuple[Part, ...]
    gpu: str
    sum: str
    cost_nano: int
    recorded: int | None

    @property
    def cost(self) -> str:
        return money.shown(self.cost_nano)

    @property
    def recorded_cost(self) -> str:
        return "" if self.recorded is None else money.shown(self.recorded)

    @property
    def agrees(self) -> bool:
        return self.cost_nano == self.recorded


def receipt(record: UsageRecord, price: Price) -> Receipt:
    """`price`: the row that is on the record."""
    gpu_us = record.load_us + record.prefill_us + record.decode_us
    parts = [
        _tokens("Prompt", record.prompt_tokens, price.input_nano),
        _tokens("Answer", record.completion_tokens, price.output_nano),
    ]
    seconds = _decimal(gpu_us, MILLION)
    if price.gpu_second_nano:
        formula = f"{seconds} GPU seconds × {money.shown(price.gpu_second_nano)} per GPU-second"
        parts.append((_GPU, formula, Fraction(gpu_us * price.gpu_second_nano, MILLION)))
    if price.kwh_nano and price.watts:
        formula = (
            f"{seconds} GPU seconds × {price.watts} W ÷ {WATT_SECONDS_PER_KWH} watt-seconds per kWh × "
            f"{money.shown(price.kwh_nano)} per kWh"
        )
        share = Fraction(gpu_us * price.watts * price.kwh_nano, MILLION * WATT_SECONDS_PER_KWH)
        parts.append((_ENERGY, formula, share))
    uses_gpu = any(name in (_GPU, _ENERGY) for name, *_ in parts)
    times = [_decimal(us, MILLION) for us in (record.load_us, record.prefill_us, record.decode_us)]
    return Receipt(
        price,
        tuple(Part(name, formula, _written(nano)) for name, formula, nano in parts),
        f"{times[0]} s load + {times[1]} s prefill + {times[2]} s decode = {seconds} GPU seconds" if uses_gpu else "",
        _written(sum((nano for *_, nano in parts), start=Fraction(0))),
        cost_nano(_row(price), record.prompt_tokens, record.completion_tokens, gpu_us),
        record.cost_nano,
    )


_GPU, _ENERGY = "GPU time", "Energy"


def _tokens(name: str, tokens: int, nano_per_million: int) -> tuple[str, str, Fraction]:
    formula = f"{tokens} tokens × {money.shown(nano_per_million)} per {MILLION} tokens"
    return name, formula, Fraction(tokens * nano_per_million, MILLION)


def _decimal(number: int, unit: int) -> str:
    """Exact: the unit is a power of ten."""
    whole, rest = divmod(number, unit)
    decimals = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0")
    return f"{whole}.{decimals}" if decimals else str(whole)


def _written(nano: Fraction) -> str:
    """Nano-units, exact where six decimals say it, else with dots where the digits go on."""
    whole, rest = divmod(nano.numerator, nano.denominator)
    digits, rest = divmod(rest * MILLION, nano.denominator)
    decimals = f"{digits:06d}"
    if rest:
        return f"{whole}.{decimals}…"
    return f"{whole}.{decimals.rstrip('0')}" if digits else str(whole)


def _row(price: Price) -> PriceRow:
    return PriceRow(
        price.pk, price.model, price.valid_from, price.backend, price.input_nano, price.output_nano,
        price.gpu_second_nano, price.kwh_nano, price.watts,
    )  # fmt: skip
