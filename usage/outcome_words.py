"""How a call ended, in words, and what to do next."""

from usage.models import Outcome

# (what happened, what to do next)
OUTCOMES: dict[str, tuple[str, str]] = {
    Outcome.OK: ("It was answered to its end.", ""),
    Outcome.FAILED: ("It was not answered to its end.", ""),
    Outcome.CANCELLED: (
        "The client left before the end, or somebody cancelled it. What was generated until then is counted.",
        "If nobody meant to, look for a timeout of the client that is shorter than its answers take.",
    ),
    Outcome.CUT: (
        "The key, its user or a right was withdrawn while it ran.",
        "Look at the state of the key, or ask an owner of the tenant.",
    ),
    Outcome.TIMEOUT: (
        "The backend, or the line, took longer than it may.",
        "Try again; if it happens often, ask an administrator about the load of the backends.",
    ),
    Outcome.INTERRUPTED: (
        "The gateway's process ended while the call ran. Tokens are estimates of what had passed by then.",
        "Make the call again.",
    ),
    Outcome.REFUSED_IN_LINE: (
        "No slot of a backend became free, and the waiting line let it go.",
        "Try again later, or with fewer calls at a time.",
    ),
    Outcome.CACHED: ("The same question had been asked before: the answer came from the cache.", ""),
    Outcome.COALESCED: ("The same question was being asked at that moment: both got one answer.", ""),
}


def outcome_words(outcome: str) -> tuple[str, str]:
    return OUTCOMES.get(outcome, (outcome, ""))
