"""docs/clients.md, from the catalogue and from what a run saw."""

from collections.abc import Iterable, Mapping

from tests.clients.catalogue import CLIENTS, COLUMNS, ROOT, Client

PATH = ROOT / "docs/clients.md"
HEAD = """# Clients

What each client does through the gateway with only its address and its key changed. Each cell is a test: `tests/clients` runs the library itself, or the requests that a tool makes, against `serve` on uvicorn, `serve --server daphne` and bare `daphne gateway_site.asgi:application`, each with the backend reached by the transports wire and httpx. A cell says `yes` if all six runs saw all that is listed under [What is tested](#what-is-tested). This page is written by `scripts/clients write`; a test run that sees anything else fails.
"""  # noqa: E501 - one paragraph of a page
TESTED = {
    "chat": "An answer in one piece: the text and the token counts of the backend. OpenAI: `/v1/completions`, too.",
    "stream": "The same in chunks, as many as the backend sent, with counts at the end; where the client did not ask "
    "for counts (`stream_options`), it gets none and the record has them. OpenAI: `/v1/responses`, too.",
    "tools": "A tool is called with its arguments, its result sent back, and answered.",
    "images": "The image arrives at the backend, byte for byte.",
    "thinking": "Thoughts and answer, apart from each other.",
    "structured output": "JSON that fits a schema.",
    "embeddings": "Two texts, two vectors, equal to the backend's.",
    "list": "The models of all backends.",
    "show": "What a model can, or that it is there.",
    "pull": "Progress to its end, with a key that may manage models.",
    "errors": "An unknown model (404), a wrong key (401), a limit that the call can never fit (429, not tried again) "
    "and a stream that breaks off: each raised as the library's own exception, with the gateway's text. Libraries that "
    "retry wait as long as `Retry-After` says and then succeed.",
    "cancel": "The client leaves an endless stream: the backend's connection is closed, the record says `cancelled`.",
}
DIFFERENCES = """## Where the gateway differs from Ollama

- Every call has exactly one record, whose tokens are those of the backend; a stream that the client left has an estimate.
- Load-time options (`num_ctx`, `num_gpu`, …), `shift` and `keep_alive` come from the policy of the model, because they reload or pin it for everybody. `x-gateway-adjusted` tells a client what was changed. More `num_ctx` than the model runs with is refused.
- An unload (`keep_alive: 0` and no prompt, as of `ollama stop` or Open WebUI) by a key that may not manage models is answered, and not done.
- Lists show the models that the key may use. Pulling, copying and deleting need a key that may manage models.
- A stream that a backend breaks off ends with an error in the client's dialect; Ollama's own `/v1` routes just end.
- 429 and 503 say when to come back in `Retry-After`, and `x-should-retry: false` where that is too far away or would not help.
- `/v1/messages/count_tokens`, which Ollama does not have, is answered with an estimate.
"""  # noqa: E501 - paragraphs of a page

# (client, column) → the servers and transports on which it does not work.
Failures = Mapping[tuple[str, str], list[str]]


def render(failures: Failures) -> str:
    notes: dict[str, int] = {}
    parts = [HEAD, matrix(failures, notes)]
    parts.append("".join(f"{number}. {text}\n" for text, number in notes.items()))
    parts.append("## What is tested\n\n" + table(["", "seen"], [[name, TESTED[name]] for name in COLUMNS]))
    parts.append("## How each is set up\n\n" + table(["client", "version", "address and key"], map(setup, CLIENTS)))
    parts.append(DIFFERENCES)
    return "\n".join(parts)


def matrix(failures: Failures, notes: dict[str, int]) -> str:
    rows = [[client.name, *(cell(client, column, failures, notes) for column in COLUMNS)] for client in CLIENTS]
    return table(["client", *COLUMNS], rows)


def cell(client: Client, column: str, failures: Failures, notes: dict[str, int]) -> str:
    where = failures.get((client.name, column))
    text = "n/a" if column in client.lacks else "yes"
    if where:
        text = "no: " + ", ".join(where)
    note = client.lacks.get(column) or client.notes.get(column)
    if note:
        text += f" ({notes.setdefault(note, len(notes) + 1)})"
    return text


def setup(client: Client) -> list[str]:
    return [client.name, client.versions or "its requests, as described for Ollama 0.33", client.setup]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
