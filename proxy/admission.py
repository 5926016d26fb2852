"""Who is calling, from where, and what they may do. Pure: values in, a Key or a Refusal out, no I/O."""

import base64
import binascii
from collections.abc import Iterable

from proxy.client_address import Address
from proxy.errors import BadRequest, Forbidden, NotFound, Refusal, Unauthorized
from proxy.model_names import MAX_LENGTH, InvalidModelName
from proxy.routes import Right, Route
from proxy.snapshot import Key, Model, Snapshot
from tenants.keys import digest, has_our_form

Headers = Iterable[tuple[bytes, bytes]]

# One text for unknown, revoked, expired, disabled and foreign keys: it must not tell which.
NOT_ACCEPTED = (
    "This API key is not accepted here: it may be mistyped, unknown, expired, revoked or switched off, or not allowed "
    "from this address. The page of the key says which."
)
NO_KEY = "An API key is needed. Send it as 'Authorization: Bearer <key>'."


def credentials(headers: Headers, auth_header: bytes) -> list[bytes]:
    """The distinct credentials of a request. Raises Unauthorized where one cannot be read (A5)."""
    found: list[bytes] = []
    for name, value in headers:
        if name == auth_header or name == b"authorization":
            credential = _of_authorization(value)
        elif name == b"x-api-key":
            credential = value.strip()
        else:
            continue
        if credential not in found:
            found.append(credential)
    return found


def _of_authorization(value: bytes) -> bytes:
    scheme, blank, rest = value.strip().partition(b" ")
    if not blank:
        return scheme  # the bare key
    kind = scheme.lower()
    if kind == b"bearer":
        return rest.strip()
    if kind == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            pass
    raise Unauthorized("invalid_key", NO_KEY)


class Admission:
    """Recognises keys with the peppers of this installation."""

    def __init__(self, auth_header: bytes, pepper: bytes, fallbacks: Iterable[bytes] = ()) -> None:
        self.auth_header = auth_header
        self.peppers = (pepper, *fallbacks)

    def admit(self, snapshot: Snapshot, route: Route, headers: Headers, address: Address | None, now: float) -> Key:
        """The key a call is made with. Raises Forbidden (a rule for all), Unauthorized, or for a right it lacks."""
        if not snapshot.ip_all.allow(address):
            raise Forbidden("ip_denied", "Calls from this address are not allowed here.")
        key = self.identify(snapshot, headers, address, now)
        if not (key.tenant_ip.allow(address) and key.key_ip.allow(address)):
            raise Unauthorized("invalid_key", NOT_ACCEPTED)
        check_right(key, route)
        return key

    def identify(self, snapshot: Snapshot, headers: Headers, address: Address | None, now: float) -> Key:
        presented = credentials(headers, self.auth_header)
        acting = snapshot.key_acting_for(address, now) if snapshot.acting else None
        if acting is not None and not any(has_our_form(credential) for credential in presented):
            # In such a network "not-needed" and its like count as no credential.
            key = self.lookup(snapshot, presented[0], now) if len(presented) == 1 else None
            return key or acting
        if not presented:
            raise Unauthorized("missing_key", NO_KEY, headers={b"www-authenticate": b'Bearer realm="Ollama Gateway"'})
        if len(presented) > 1:
            raise Unauthorized("invalid_key", "Two different credentials were sent. Send one.")
        key = self.lookup(snapshot, presented[0], now)
        if key is None:
            raise Unauthorized("invalid_key", NOT_ACCEPTED)
        return key

    def lookup(self, snapshot: Snapshot, credential: bytes, now: float) -> Key | None:
        """By the digest of the whole key; what has not our form is not even digested, unless keys were imported."""
        if has_our_form(credential) or (snapshot.tables.foreign_keys and 16 <= len(credential) <= 256):
            for pepper in self.peppers:
                key = snapshot.key_by_digest(digest(credential, pepper), now)
                if key is not None:
                    return key
        return None


def check_right(key: Key, route: Route) -> None:
    """Raises Forbidden where the key lacks the class of endpoints."""
    right = route.right
    if right is Right.INFER and not key.may_infer:
        raise Forbidden("endpoint_not_allowed", "This API key may not generate. Ask its owner for the right.")
    if right is Right.LIST and not key.may_list:
        raise Forbidden("endpoint_not_allowed", "This API key may not list models. Ask its owner for the right.")
    if right is Right.MANAGE and not key.may_manage:
        raise Forbidden("endpoint_not_allowed", "This API key may not manage models. Ask its owner for the right.")


def resolve_model(snapshot: Snapshot, key: Key, route: Route, asked: object) -> Model:
    """What the named model is to this key. Raises BadRequest, NotFound (also for models it may not use)."""
    if not asked:
        status, message = route.missing_model
        raise _model_refusal(status, message)
    assert isinstance(asked, str)
    if len(asked) > MAX_LENGTH:
        raise BadRequest("invalid model name", "invalid_model_name")
    try:
        model = snapshot.model(key, asked)
    except InvalidModelName as exc:
        raise BadRequest(str(exc), "invalid_model_name") from None
    if not model.allowed:
        # As for a model that does not exist: which models others have is not for this key to know.
        raise NotFound("model_not_allowed", route.unknown_model.format(asked, model.asked.shown))
    return model


def _model_refusal(status: int, message: str) -> Refusal:
    return NotFound("model_not_found", message) if status == 404 else BadRequest(message)
