"""The routes that exist. Everything else does not (P1): no path of a client is ever passed on."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from proxy import dialects
from proxy.dialects import Dialect, Endpoint
from proxy.dialects.ollama_management import OPERATIONS, Operation


class Kind(Enum):
    """What is done with a call of a route."""

    ROOT = auto()  # answered by us, to anybody
    VERSION = auto()  # answered by us from what the probes know
    TAGS = auto()
    PS = auto()
    STATUS = auto()
    MODELS = auto()
    MODEL = auto()  # its name is the last segment of the path
    SHOW = auto()  # asked of a backend that has the model, without a slot
    MANAGE = auto()  # changes the models of one backend
    GENERATION = auto()
    EMBEDDING = auto()
    PASSED = auto()  # added by a superuser; the body names a model where it has an endpoint
    COUNT = auto()  # an estimate of ours, for nobody's bill


class Right(Enum):
    """The class of endpoints that a key must have the right to."""

    NONE = auto()
    INFER = auto()
    LIST = auto()
    MANAGE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    method: str
    path: str
    kind: Kind
    right: Right
    dialect: Dialect
    endpoint: Endpoint | None = None
    operation: Operation | None = None
    upstream: bytes = b""  # "METHOD path" towards the backend; a parameter follows as it was parsed
    missing_model: tuple[int, str] = (400, "model is required")
    unknown_model: str = "model '{0}' not found"  # {0}: the name as it was asked for, {1}: with its tag


def _get(path: str, kind: Kind, right: Right) -> list[Route]:
    return [
        Route(method=method, path=path, kind=kind, right=right, dialect=dialects.of_path(path.encode()))
        for method in ("GET", "HEAD")
    ]


def _post(path: str, kind: Kind, right: Right = Right.INFER, **options: object) -> Route:
    return Route(
        method="POST",
        path=path,
        kind=kind,
        right=right,
        dialect=dialects.of_path(path.encode()),
        endpoint=dialects.ENDPOINTS[path],
        upstream=f"POST {path}".encode(),
        **options,  # type: ignore[arg-type]
    )


def _manage(method: str, path: str) -> Route:
    return Route(
        method=method,
        path=path,
        kind=Kind.MANAGE,
        right=Right.MANAGE,
        dialect=dialects.OLLAMA,
        operation=OPERATIONS.get(path),
        upstream=f"{method} {path.removesuffix(DIGEST)}".encode(),
    )


DIGEST = "{digest}"
_NOT_FOUND = (404, "model '' not found")
_PULL_FIRST = 'model "{0}" not found, try pulling it first'

_ROUTES: list[Route] = [
    *_get("/", Kind.ROOT, Right.NONE),
    *_get("/api/version", Kind.VERSION, Right.LIST),
    *_get("/api/tags", Kind.TAGS, Right.LIST),
    _get("/api/ps", Kind.PS, Right.LIST)[0],
    _get("/api/status", Kind.STATUS, Right.LIST)[0],
    _get("/v1/models", Kind.MODELS, Right.LIST)[0],
    _post("/api/show", Kind.SHOW, Right.LIST, unknown_model="model '{1}' not found"),
    _post("/api/chat", Kind.GENERATION),
    _post("/api/generate", Kind.GENERATION, missing_model=_NOT_FOUND),
    _post("/api/embed", Kind.EMBEDDING, missing_model=_NOT_FOUND, unknown_model=_PULL_FIRST),
    _post("/api/embeddings", Kind.EMBEDDING, unknown_model=_PULL_FIRST),
    _post("/v1/chat/completions", Kind.GENERATION),
    _post("/v1/completions", Kind.GENERATION, missing_model=_NOT_FOUND),
    _post("/v1/embeddings", Kind.EMBEDDING, missing_model=_NOT_FOUND, unknown_model=_PULL_FIRST),
    _post("/v1/responses", Kind.GENERATION),
    _post("/v1/messages", Kind.GENERATION),
    _post("/v1/messages/count_tokens", Kind.COUNT),
    _post("/v1/audio/transcriptions", Kind.GENERATION),
    *(_manage("POST", f"/api/{name}") for name in ("pull", "push", "create", "copy")),
    _manage("DELETE", "/api/delete"),
]
# Those that end in one more segment, which is parsed, and never passed on as it came.
_WITH_PARAMETER = [
    _manage("POST", f"/api/blobs/{DIGEST}"),
    _manage("HEAD", f"/api/blobs/{DIGEST}"),
    _get("/v1/models/{model}", Kind.MODEL, Right.LIST)[0],
]
_NO_ROUTES: Mapping[str, Route] = {}


def _by_path(routes: list[Route]) -> Mapping[bytes, Mapping[str, Route]]:
    table: dict[bytes, dict[str, Route]] = {}
    for route in routes:
        table.setdefault(route.path.encode(), {})[route.method] = route
    return table


ROUTES: Mapping[bytes, Mapping[str, Route]] = _by_path(_ROUTES)
_BY_PREFIX = {path.partition(b"{")[0]: methods for path, methods in _by_path(_WITH_PARAMETER).items()}


def find(raw_path: bytes) -> tuple[Mapping[str, Route], str]:
    """(the routes of a path by method, none where there are none; its last segment where that is a parameter)."""
    methods = ROUTES.get(raw_path)
    if methods is not None:
        return methods, ""
    prefix, slash, segment = raw_path.rpartition(b"/")
    methods = _BY_PREFIX.get(prefix + slash)
    return (methods, segment.decode("latin-1")) if methods is not None and segment else (_NO_ROUTES, "")


def belongs_to_calls(raw_path: bytes) -> bool:
    """Whether a path is the data plane's to answer, be it with 404."""
    return raw_path in ROUTES or raw_path.startswith((b"/api/", b"/v1/", b"/k/")) or raw_path in (b"/api", b"/v1")
