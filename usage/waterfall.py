"""Where the time of one call went, as bars below each other. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from usage.models import UsageRecord

WIDTH, LEFT, RIGHT = 760, 130, 90
ROW, BAR = 26, 14


@dataclass(frozen=True, slots=True)
class Step:
    """`share`: of the whole, in percent. `colour`: a class of the style sheet."""

    name: str
    what: str
    us: int
    share: float
    x: float
    y: int
    width: float
    colour: str


COLOURS = ("series-4", "series-3", "series-7", "series-2", "series-1", "series-other")


@dataclass(frozen=True, slots=True)
class Waterfall:
    """`first_token_x`: None where no token came."""

    steps: tuple[Step, ...]
    total_us: int
    first_token_us: int
    first_token_x: float | None
    width: int = WIDTH
    left: int = LEFT
    bar: int = BAR

    @property
    def height(self) -> int:
        return len(self.steps) * ROW + 18


PHASES = (
    ("Gateway", "gateway_us", "reading the call, asking who may do what, sending it on"),
    ("Line", "queue_us", "waiting for a free slot of a backend"),
    ("Load", "load_us", "the backend loads the model, if it was not warm"),
    ("Prefill", "prefill_us", "the backend reads the prompt"),
    ("Decode", "decode_us", "the backend generates the answer"),
)
REST = ("Rest", "the network, the client's reading, and what the backend did not tell apart")


def waterfall(record: UsageRecord) -> Waterfall:
    """What a backend tells of its phases may be longer than what the gateway measured: the longer one is the width."""
    phases = [(name, what, int(getattr(record, column))) for name, column, what in PHASES]
    known = sum(us for *_, us in phases)
    phases.append((*REST, max(record.total_us - known, 0)))
    whole = max(record.total_us, known, 1)
    scale = (WIDTH - LEFT - RIGHT) / whole
    first = record.first_token_us
    return Waterfall(
        tuple(_placed(phases, whole, scale)),
        record.total_us,
        first,
        round(LEFT + min(first, whole) * scale, 2) if first else None,
    )


def _placed(phases: list[tuple[str, str, int]], whole: int, scale: float) -> Iterator[Step]:
    begin = 0
    for number, (name, what, us) in enumerate(phases):
        width = max(us * scale, 1.0) if us else 0.0
        yield Step(
            name,
            what,
            us,
            100 * us / whole,
            round(LEFT + begin * scale, 2),
            number * ROW,
            round(width, 2),
            COLOURS[number],
        )
        begin += us
