"""The clients and what each of them has: the rows and columns of docs/clients.md."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SDKS = ROOT / ".venv-clients/sdks/bin/python"
LITELLM = ROOT / ".venv-clients/litellm/bin/python"

# Column → the scenarios that it stands for.
COLUMNS: Mapping[str, Sequence[str]] = {
    "chat": ("chat",),
    "stream": ("stream",),
    "tools": ("tools",),
    "images": ("images",),
    "thinking": ("thinking",),
    "structured output": ("structured",),
    "embeddings": ("embeddings",),
    "list": ("list",),
    "show": ("show",),
    "pull": ("pull",),
    "errors": ("unknown_model", "bad_key", "limit", "broken"),
    "cancel": ("cancel",),
}

# (class of the exception, status) by scenario.
Errors = Mapping[str, tuple[str, int | None]]


@dataclass(frozen=True)
class Client:
    name: str
    dialect: str
    # Locked packages whose versions the document names, as (lock file, package).
    packages: Sequence[tuple[str, str]]
    errors: Errors
    # Its program in drivers/; "" = a sequence of requests in sequences.py.
    driver: str = ""
    argument: str = ""
    # Column → why it has no such thing.
    lacks: Mapping[str, str] = field(default_factory=dict)
    # Column → scenarios beside the usual ones.
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # Column → where the gateway, or the client behind it, is not as one might expect.
    notes: Mapping[str, str] = field(default_factory=dict)
    # Waits for `Retry-After` by itself.
    retries: bool = False
    key_in_path: bool = False
    # How it is told the gateway's address and a key, for the document.
    setup: str = ""

    def scenarios(self, column: str) -> Sequence[str]:
        if column in self.lacks:
            return ()
        waits = ("wait",) if column == "errors" and self.retries else ()
        return (*COLUMNS[column], *self.more.get(column, ()), *waits)

    def columns(self) -> Sequence[str]:
        return [column for column in COLUMNS if column not in self.lacks]

    @property
    def command(self) -> list[str]:
        path = HERE / "drivers" / self.driver
        if path.suffix == ".mjs":
            interpreter = shutil.which("node") or "node"
        else:
            interpreter = str(LITELLM if self.driver.startswith("litellm") else SDKS)
        return [interpreter, str(path), *([self.argument] if self.argument else [])]

    @property
    def versions(self) -> str:
        return ", ".join(f"{package} {version_of(lock, package)}" for lock, package in self.packages)


def version_of(lock: str, package: str) -> str:
    text = (HERE / lock).read_text()
    if lock.endswith(".json"):
        found = re.search(rf'"node_modules/{re.escape(package)}": {{\s*"version": "([^"]+)"', text)
    else:
        found = re.search(rf"^{re.escape(package)}==(\S+)", text, re.MULTILINE)
    assert found, f"{package} is not in {lock}"
    return found[1]


def python(*packages: str) -> list[tuple[str, str]]:
    return [("requirements.txt", package) for package in packages]


def node(package: str) -> list[tuple[str, str]]:
    return [("package-lock.json", package)]


def ollama_errors(name: str, broken: tuple[str, int | None]) -> Errors:
    return {"unknown_model": (name, 404), "bad_key": (name, 401), "limit": (name, 429), "broken": broken}


SDK_ERRORS: Errors = {
    "unknown_model": ("NotFoundError", 404),
    "bad_key": ("AuthenticationError", 401),
    "limit": ("RateLimitError", 429),
}
REQUEST_ERRORS: Errors = ollama_errors("Refused", ("Refused", 200))

NO_LIST = "It does not list models."
NO_SHOW = "It does not ask what a model is."
NO_PULL = "It does not pull models."
NO_ROUTE = "The dialect has no route for it."

CLIENTS: Sequence[Client] = (
    Client(
        "ollama-python",
        "Ollama",
        python("ollama"),
        ollama_errors("ResponseError", ("ResponseError", -1)),
        driver="ollama_python.py",
        setup='`ollama.Client(host="https://gateway", headers={"Authorization": "Bearer KEY"})`, '
        "or `OLLAMA_HOST` and `OLLAMA_API_KEY`",
    ),
    Client(
        "ollama-js",
        "Ollama",
        node("ollama"),
        ollama_errors("ResponseError", ("Error", None)),
        driver="ollama_js.mjs",
        setup='`new Ollama({ host: "https://gateway", headers: { Authorization: "Bearer KEY" } })`',
    ),
    Client(
        "openai-python",
        "OpenAI",
        python("openai"),
        {**SDK_ERRORS, "broken": ("APIError", None)},
        driver="openai_python.py",
        lacks={"pull": NO_ROUTE},
        more={"chat": ("completion",), "stream": ("stream_without_usage", "responses")},
        retries=True,
        setup='`OpenAI(base_url="https://gateway/v1", api_key="KEY")`',
    ),
    Client(
        "openai-node",
        "OpenAI",
        node("openai"),
        {**SDK_ERRORS, "broken": ("APIError", None)},
        driver="openai_node.mjs",
        lacks={"pull": NO_ROUTE},
        more={"chat": ("completion",), "stream": ("stream_without_usage", "responses")},
        retries=True,
        setup='`new OpenAI({ baseURL: "https://gateway/v1", apiKey: "KEY" })`',
    ),
    Client(
        "anthropic-python",
        "Anthropic",
        python("anthropic"),
        {**SDK_ERRORS, "broken": ("APIStatusError", 200)},
        driver="anthropic_python.py",
        lacks={
            "structured output": "Ollama's form of the dialect has none.",
            "embeddings": NO_ROUTE,
            "pull": NO_ROUTE,
        },
        retries=True,
        setup='`Anthropic(base_url="https://gateway", api_key="KEY")`',
    ),
    Client(
        "anthropic-sdk (Node)",
        "Anthropic",
        node("@anthropic-ai/sdk"),
        {**SDK_ERRORS, "broken": ("APIError", None)},
        driver="anthropic_node.mjs",
        lacks={
            "structured output": "Ollama's form of the dialect has none.",
            "embeddings": NO_ROUTE,
            "pull": NO_ROUTE,
        },
        retries=True,
        setup='`new Anthropic({ baseURL: "https://gateway", apiKey: "KEY" })`',
    ),
    Client(
        "LangChain `ChatOllama`",
        "Ollama",
        python("langchain-ollama", "ollama"),
        ollama_errors("ResponseError", ("ResponseError", -1)),
        driver="langchain_clients.py",
        lacks={"show": NO_SHOW, "pull": NO_PULL},
        notes={"list": "By `validate_model_on_init`."},
        setup='`ChatOllama(base_url="https://gateway", client_kwargs={"headers": {"Authorization": "Bearer KEY"}})`',
    ),
    Client(
        "LangChain `ChatOpenAI`",
        "OpenAI",
        python("langchain-openai", "openai"),
        {
            "unknown_model": ("OpenAIModelNotFoundError", 404),
            "bad_key": ("OpenAIAuthenticationError", 401),
            "limit": ("OpenAIRateLimitError", 429),
            "broken": ("APIError", None),
        },
        driver="langchain_clients.py",
        argument="openai",
        lacks={
            "thinking": "It drops what it does not know of a message, and so Ollama's `reasoning`.",
            "list": NO_LIST,
            "show": NO_SHOW,
            "pull": NO_PULL,
        },
        notes={
            "embeddings": "`OpenAIEmbeddings` with `check_embedding_ctx_length=False`: Ollama takes no token numbers."
        },
        retries=True,
        setup='`ChatOpenAI(base_url="https://gateway/v1", api_key="KEY")`',
    ),
    Client(
        "LlamaIndex `Ollama`",
        "Ollama",
        python("llama-index-llms-ollama", "llama-index-embeddings-ollama", "ollama"),
        {**ollama_errors("ResponseError", ("ResponseError", -1)), "whole_context": ("ResponseError", 400)},
        driver="llamaindex.py",
        lacks={"list": NO_LIST, "pull": NO_PULL},
        more={"errors": ("whole_context",)},
        notes={
            "chat": "Say `context_window`. Otherwise it asks for the whole context that the model was trained for, "
            "which the gateway refuses (400, `context_too_long`) unless it runs the model with as much."
        },
        setup='`Ollama(base_url="https://gateway", headers={"Authorization": "Bearer KEY"}, context_window=4096)`',
    ),
    Client(
        "LiteLLM `ollama_chat/`",
        "Ollama",
        [("litellm.txt", "litellm")],
        {**SDK_ERRORS, "broken": ("BadRequestError", 400)},
        driver="litellm_client.py",
        argument="ollama",
        lacks={"list": NO_LIST, "show": NO_SHOW, "pull": NO_PULL},
        notes={
            "embeddings": "`ollama/` sends no key with them: `api_base=https://gateway/k/KEY`, or `openai/`.",
            "cancel": "It has no method for it: the call ends with the last reference to the stream.",
        },
        key_in_path=True,
        setup='`completion("ollama_chat/MODEL", api_base="https://gateway", api_key="KEY")`',
    ),
    Client(
        "LiteLLM `openai/`",
        "OpenAI",
        [("litellm.txt", "litellm"), ("litellm.txt", "openai")],
        {**SDK_ERRORS, "broken": ("MidStreamFallbackError", 500)},
        driver="litellm_client.py",
        argument="openai",
        lacks={"list": NO_LIST, "show": NO_SHOW, "pull": NO_PULL},
        notes={"cancel": "By the stream of the library below: `response.completion_stream.close()`."},
        setup='`completion("openai/MODEL", api_base="https://gateway/v1", api_key="KEY")`',
    ),
    Client(
        "Open WebUI",
        "Ollama",
        (),
        REQUEST_ERRORS,
        setup="Admin, Connections, Ollama: URL `https://gateway`, key in the bearer field",
    ),
    Client(
        "Continue",
        "Ollama",
        (),
        REQUEST_ERRORS,
        lacks={"structured output": "It asks for none.", "pull": NO_PULL},
        setup="`provider: ollama`, `apiBase: https://gateway/` (with its slash), `apiKey: KEY`",
    ),
    Client(
        "Claude Code",
        "Anthropic",
        (),
        REQUEST_ERRORS,
        lacks={
            "chat": "It always streams.",
            "structured output": "It asks for none.",
            "embeddings": "It asks for none.",
            "show": NO_SHOW,
            "pull": NO_PULL,
        },
        more={"stream": ("count_tokens",)},
        setup="`ANTHROPIC_BASE_URL=https://gateway ANTHROPIC_AUTH_TOKEN=KEY`",
    ),
    Client(
        "Codex CLI",
        "OpenAI",
        (),
        REQUEST_ERRORS,
        lacks={
            "chat": "It always streams.",
            "embeddings": "It asks for none.",
            "show": NO_SHOW,
        },
        setup='a provider with `base_url = "https://gateway/v1"`, `wire_api = "responses"` and an `env_key`',
    ),
    Client(
        "`ollama` CLI",
        "Ollama",
        (),
        {**REQUEST_ERRORS, "bad_key": ("HeadRefused", 401)},
        lacks={"tools": "It sends none."},
        notes={
            "chat": "It cannot send a key: `OLLAMA_HOST=https://gateway/k/KEY`, with a key that may be in the path.",
            "errors": "Its first request is `HEAD /`, whose answer has no body: of a wrong key it sees 401 alone.",
        },
        key_in_path=True,
        setup="`OLLAMA_HOST=https://gateway/k/KEY`",
    ),
)
