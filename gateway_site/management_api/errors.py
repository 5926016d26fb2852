"""Every refusal of the management API, in one shape: {"error": {"code", "message", "field"?}, "request_id"}.

Problem                     carries status, code, text and, where it is about one, the field
├── BadRequest              400
├── Unauthorized            401
├── Forbidden               403
├── NotFound                404
├── MethodNotAllowed        405
├── Conflict                409
├── TooLarge                413
├── Invalid                 422
├── TooManyRequests         429
└── Unavailable             503
"""

import logging
from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.core.exceptions import ValidationError as ModelValidationError
from django.db import DatabaseError, DataError, IntegrityError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.request import UnreadablePostError
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError
from ninja.schema import NinjaGenerateJsonSchema
from pydantic import BaseModel

from tenants.management.administration import explanation, one_line

logger = logging.getLogger(__name__)


class Problem(Exception):
    status = 500
    code = "internal_error"

    def __init__(self, message: str, code: str = "", *, field: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.field = field
        self.headers = headers or {}


class BadRequest(Problem):
    status, code = 400, "invalid_request"


class Unauthorized(Problem):
    status, code = 401, "invalid_token"


class Forbidden(Problem):
    status, code = 403, "not_permitted"


class NotFound(Problem):
    status, code = 404, "not_found"


class MethodNotAllowed(Problem):
    status, code = 405, "method_not_allowed"


class Conflict(Problem):
    status, code = 409, "conflict"


class TooLarge(Problem):
    status, code = 413, "body_too_large"


class Invalid(Problem):
    status, code = 422, "invalid_value"


class TooManyRequests(Problem):
    status, code = 429, "too_many_requests"

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message, headers={"Retry-After": str(seconds)})


class Unavailable(Problem):
    status, code = 503, "state_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Retry-After": "2"})


class ErrorDetail(BaseModel):
    code: str
    message: str
    field: str | None = None


class Error(BaseModel):
    error: ErrorDetail
    request_id: str


# What any operation may answer besides what it is for.
STATUSES = tuple(HTTPStatus(status) for status in (400, 401, 403, 404, 405, 409, 413, 422, 429, 500, 503))


def add_to_document(document: dict[str, Any]) -> None:
    """Describes the refusals of every operation in an OpenAPI document.

    Told to ninja, they would be models of their own for each operation and status: 600 of them, a fifth of every start.
    """
    shape = Error.model_json_schema(
        ref_template="#/components/schemas/{model}", schema_generator=NinjaGenerateJsonSchema
    )
    document["components"]["schemas"] |= {**shape.pop("$defs"), Error.__name__: shape}
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{Error.__name__}"}}}
    refusals = {status.value: {"description": status.phrase, "content": content} for status in STATUSES}
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"] |= refusals


def answer(request: HttpRequest, problem: Problem) -> HttpResponse:
    error = {"code": problem.code, "message": one_line(problem.message)}
    if problem.field:
        error["field"] = problem.field
    content = {"error": error, "request_id": getattr(request, "id", "")}
    response = JsonResponse(content, status=problem.status, headers=problem.headers)
    # What is refused is told to whoever asked: a line each would let strangers fill the log. Faults of ours are in it.
    response._has_been_logged = True  # type: ignore[attr-defined]  # what Django's own views do
    return response


def problem_of(exc: Exception) -> Problem:
    """Foreign exceptions are translated here, and nowhere else."""
    match exc:
        case Problem():
            return exc
        case ValidationError():
            return _of_fields(exc)
        case ModelValidationError():
            return _of_model(exc)
        case HttpError():
            # How ninja wraps whatever its parser raises.
            return problem_of(exc.__cause__) if isinstance(exc.__cause__, Problem) else BadRequest(exc.message)
        case Http404():
            return NotFound("There is nothing here. The OpenAPI document lists what is: /manage/api/openapi.json")
        case PermissionDenied():
            return Forbidden(str(exc) or "Your rights do not reach so far.")
        case RequestDataTooBig():
            return TooLarge("The body is larger than any that makes sense here.")
        case SuspiciousOperation() | UnreadablePostError():
            return BadRequest("The request could not be read.")
        case IntegrityError():
            return Conflict("Something else was changed at the same moment. Look, and try again.")
        case DataError():
            return Invalid("A value is too large, too long or of a form that cannot be kept.")
        case DatabaseError():
            logger.warning("The management API has no database: %s", type(exc).__name__)
            return Unavailable("The database does not answer in time. Nothing was changed; try again.")
    logger.error("The management API failed to answer", exc_info=exc)
    return Problem("The gateway failed to answer. The log has the details.")


def install(api: NinjaAPI) -> None:
    def handle(request: HttpRequest, exc: Exception) -> HttpResponse:
        return answer(request, problem_of(exc))

    for kind in (Exception, Http404, HttpError, ValidationError):
        api.add_exception_handler(kind, handle)


def _of_fields(exc: ValidationError) -> Problem:
    """The first thing that is wrong; `field` is its path in the body, or the name of the parameter."""
    first = exc.errors[0]
    _source, *path = first["loc"]
    # Of a body ninja says the name of our argument first; of a union pydantic says which member it tried.
    names = [str(part) for part in path if part != "body"]
    if not names:
        return Invalid("The body is missing: send a JSON object.")
    message = first["msg"].removeprefix("Value error, ")
    return Invalid(message[:1].upper() + message[1:], field=".".join(names[:1]))


def _of_model(exc: ModelValidationError) -> Problem:
    fields = [name for name in getattr(exc, "error_dict", {}) if name != "__all__"]
    return Invalid(explanation(exc), field=fields[0] if fields else "")
