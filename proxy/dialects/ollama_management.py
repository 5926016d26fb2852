"""Model management in Ollama's dialect: what may be asked, and which models it is about. Pure.

What a later Ollama may add to these requests is not passed on: what it could do is not known here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy import body
from proxy.body import Schema
from proxy.dialects.base import Request
from proxy.dialects.ollama import MESSAGE
from proxy.errors import BadRequest, Forbidden

# As Ollama takes it; it is passed on with a colon and in lower case.
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}\Z")
INVALID_DIGEST = "invalid digest format"


def digest(text: str) -> str:
    """The digest of a blob as it is passed on. Raises BadRequest."""
    if not _DIGEST.match(text):
        raise BadRequest(INVALID_DIGEST, "invalid_digest")
    return f"sha256:{text[7:].lower()}"


def blobs(name: str, value: Any) -> Any:
    """Digests of blobs by the names that files are to have on the backend."""
    if body.obj(name, value) is None:
        return value
    for path, blob in value.items():
        if not _is_relative(path):
            raise BadRequest(f'"{name}": {path[:100]!r} is not a file name: no "..", no leading "/", no "\\"')
        if not isinstance(blob, str):
            raise BadRequest(f'"{name}": the digest of {path[:100]!r} must be a string')
        value[path] = digest(blob)
    return value


def _is_relative(path: str) -> bool:
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and ":" not in path and not {"", ".", ".."} & set(parts)


def licence(name: str, value: Any) -> Any:
    return value if isinstance(value, str) else body.texts(name, value)


def not_taken(name: str, value: Any) -> Any:
    """Older servers read any file of theirs that these name, as they would the models that they name."""
    if value:
        raise BadRequest(f'"{name}" is not taken here: send "from" or "files", as Ollama has it since 0.5.5')
    return None


def remote_host(name: str, value: Any) -> Any:
    if value:
        message = "A model that sends prompts to another host cannot be made through the gateway."
        raise Forbidden("remote_host_refused", message)
    return None


@dataclass(frozen=True, slots=True)
class Named:
    """A field that names a model."""

    field: str
    older: str = ""  # what the field is called by older clients
    required: bool = True
    fetched: bool = False  # whether Ollama may contact the host of the name
    missing: str = "invalid model name"
    invalid: str = "invalid model name"  # {0}: the name


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    schema: Schema
    names: tuple[Named, ...]  # the first is the model that the call is about
    reports_progress: bool = False  # in lines, unless the client wants one object
    needs_model: bool = False  # goes to where that model is
    shares_weights: str = ""  # the field whose model will live on under another name


_MODEL = {"model": body.text, "name": body.text}
_TRANSFER = Schema({**_MODEL, "insecure": body.boolean, "stream": body.boolean})
_CREATE = Schema(
    {
        **_MODEL,
        **dict.fromkeys(("from", "template", "system", "quantize", "renderer", "parser", "requires"), body.text),
        **dict.fromkeys(("files", "adapters", "draft_files"), blobs),
        **dict.fromkeys(("path", "modelfile"), not_taken),
        "parameters": body.obj,
        "info": body.obj,
        "messages": body.list_of(MESSAGE),
        "license": licence,
        "remote_host": remote_host,
        "stream": body.boolean,
    }
)

# By path.
OPERATIONS: Mapping[str, Operation] = {
    "/api/pull": Operation(
        schema=_TRANSFER,
        names=(Named("model", "name", fetched=True),),
        reports_progress=True,
    ),
    "/api/push": Operation(
        schema=_TRANSFER,
        names=(Named("model", "name", fetched=True, missing="model is required"),),
        reports_progress=True,
        needs_model=True,
    ),
    "/api/create": Operation(
        schema=_CREATE,
        names=(Named("model", "name"), Named("from", required=False, fetched=True)),
        reports_progress=True,
        shares_weights="from",
    ),
    "/api/copy": Operation(
        schema=Schema({"source": body.text, "destination": body.text}),
        names=(
            Named("source", missing='source "" is invalid', invalid='source "{0}" is invalid'),
            Named("destination", missing='destination "" is invalid', invalid='destination "{0}" is invalid'),
        ),
        needs_model=True,
        shares_weights="source",
    ),
    "/api/delete": Operation(
        schema=Schema(_MODEL),
        names=(Named("model", "name", missing='name "" is invalid', invalid='name "{0}" is invalid'),),
        needs_model=True,
    ),
}


def reduced(request: Request, operation: Operation) -> bool:
    """Takes out what is not known, and fields that say nothing. Whether something was taken out that said something."""
    unknown = request.keys() - operation.schema.names
    for name in [name for name, value in request.items() if value is None or name in unknown]:
        del request[name]
    return bool(unknown)


def wants_stream(request: Request) -> bool:
    return request.get("stream") is not False
