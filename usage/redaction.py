"""What is taken out of texts before they are stored: credentials, and addresses of people. Pure."""

import re

REDACTED = "[redacted]"

# As a secret may look like. Each repetition is bounded by the text, which is short (see fit).
_SECRETS = re.compile(
    r"""
      -----BEGIN\ [A-Z ]{0,40}PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]{0,40}PRIVATE\ KEY-----|\Z)
    | og[wm]_\w+                                                # keys and management tokens of ours
    | \bBearer\s+[\w.~+/=-]{8,}
    | (?:authorization|api[_-]?key|passw(?:or)?d|secret)["']?\s*[:=]\s*["']?(?:(?:Bearer|Basic)\s+)?[^\s"',;]+
    | (?<![\w-])[\w-]{43}=?(?![\w=-])                           # keys that were imported: 32 bytes in base64
    | \b(?:sk|pk|rk)[-_][\w-]{16,}                              # OpenAI, Anthropic, Stripe
    | \bgh[a-z]_\w{20,} | \bgithub_pat_\w{20,} | \bglpat-[\w-]{16,}
    | \bxox[a-z]-[\w-]{10,} | \bAKIA[0-9A-Z]{16}\b | \bAIza[\w-]{30,} | \bhf_\w{20,}
    | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*                         # JSON web tokens
    | [^\s@<>"',;:()]{1,64}@[^\s@<>"',;:()]{1,200}\.[^\W\d]{2,}   # e-mail
    | (?<=://)[^\s/@:]*:[^\s/@]+(?=@)                           # user and password in a URL
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE | re.ASCII,
)
# What may be the beginning of a secret whose end was cut off.
_CUT_WORD = re.compile(r"[\w.~+/=@-]*\Z", re.ASCII)


def redacted(text: str) -> str:
    return _SECRETS.sub(REDACTED, text)


def source(text: str, limit: int) -> str:
    """As much of a text as fit() needs to look at."""
    return text[: 2 * limit + 1]


def fit(text: str, limit: int) -> str:
    """Redacted, at most so many characters, and fit for every database. Of a long text the beginning."""
    looked_at = text[: 2 * limit]
    if len(text) > len(looked_at):
        # Redacted before it is cut, so that no half of a secret is left; at the end of what is looked at there may be.
        looked_at = _CUT_WORD.sub("", looked_at)
    return redacted(looked_at.replace("\x00", ""))[:limit]
