"""Who is calling, from where, and what they may do. Pure: values in, a Key or a Refusal out, no I/O."""

import base64
import binascii
from collections.abc import Iterable, Iterator

from proxy.client_address import Address
from proxy.default_models import NOTHING, WORDS, Installed
from proxy.errors import BadRequest, Forbidden, NotFound, Refusal, Unauthorized
from proxy.model_names import MAX_LENGTH, InvalidModelName
from proxy.routes import Right, Route
from proxy.snapshot import Key, KeyRow, Model, Snapshot
from tenants.keys import digest, has_our_form, without_padding

Headers = Iterable[tuple[bytes, bytes]]

# One text for unknown, revoked, expired, disabled and foreign keys: it must not tell which.
NOT_ACCEPTED = (
    "This API key is not accepted here: it may be mistyped, unknown, expired, revoked or switched off, or not allowed "
    "from this address. The page of the key says which."
)
# The same for keys of /k/KEY/…, with what is forgotten first there.
NOT_ACCEPTED_IN_PATH = (
    "This API key is not accepted here: it may not have been switched on for use in the address ('Accept it in the "
    "address', on the page of the key), or be mistyped, unknown, expired, revoked or switched off, or not allowed from "
    "where you call. The page of the key says which."
)
NO_DEFAULT_MODEL = "no_default_model"
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

    def admit(
        self,
        snapshot: Snapshot,
        route: Route,
        headers: Headers,
        address: Address | None,
        now: float,
        path_key: bytes | None = None,
    ) -> Key:
        """The key a call is made with. Raises Forbidden (a rule for all), Unauthorized, or for a right it lacks."""
        check_address(snapshot, address)
        if path_key is None:
            key = self.identify(snapshot, headers, address, now)
        else:
            key = self.identify_by_path(snapshot, path_key, headers, now)
        check_place(key, address, is_in_path=path_key is not None)
        check_right(key, route)
        return key

    def identify(self, snapshot: Snapshot, headers: Headers, address: Address | None, now: float) -> Key:
        acting = snapshot.key_acting_for(address, now) if snapshot.acting else None
        if acting is None:
            presented = credentials(headers, self.auth_header)
        else:
            presented = self._meant_for_us(snapshot, headers, now)
            if not presented:
                snapshot.count_acting(address)
                return acting
        if not presented:
            raise missing_key()
        if len(presented) > 1:
            raise Unauthorized("invalid_key", "Two different credentials were sent. Send one.")
        key = self.lookup(snapshot, presented[0], now)
        if key is None:
            raise not_accepted()
        return key

    def _meant_for_us(self, snapshot: Snapshot, headers: Headers, now: float) -> list[bytes]:
        """The credentials that count in a network that needs none: "not-needed" and its like do not."""
        try:
            presented = credentials(headers, self.auth_header)
        except Unauthorized:
            return []
        # By form first: a key of ours that is revoked must not become a call of the network's.
        return [sent for sent in presented if has_our_form(sent) or self.lookup(snapshot, sent, now)]

    def identify_by_path(self, snapshot: Snapshot, path_key: bytes, headers: Headers, now: float) -> Key:
        """The key of /k/KEY/… . Raises Unauthorized, also for one that may not be sent that way (A6)."""
        if any(credential != path_key for credential in credentials(headers, self.auth_header)):
            raise Unauthorized("invalid_key", "Two different credentials were sent. Send one.")
        key = self.lookup(snapshot, path_key, now)
        if key is None or not key.may_be_in_path:
            raise not_accepted(is_in_path=True)
        return key

    def lookup(self, snapshot: Snapshot, credential: bytes, now: float) -> Key | None:
        """The usable key with a secret."""
        for digested in self._digests(snapshot, credential):
            key = snapshot.key_by_digest(digested, now)
            if key is not None:
                return key
        return None

    def _digests(self, snapshot: Snapshot, credential: bytes) -> Iterator[bytes]:
        """Of the whole key, by each pepper; what has not our form is not even digested, unless keys were imported."""
        if not has_our_form(credential):
            if not (snapshot.tables.foreign_keys and 16 <= len(credential) <= 256):
                return
            credential = without_padding(credential)
        for pepper in self.peppers:
            yield digest(credential, pepper)

    def explain(
        self, snapshot: Snapshot, headers: Headers, now: float, path_key: bytes | None = None
    ) -> tuple[str, str]:
        """(why, prefix of the key): what the owner of a refused key is told on its page, and nobody else."""
        try:
            presented = credentials(headers, self.auth_header)
        except Unauthorized:
            return "unreadable_key", ""
        if path_key is not None and path_key not in presented:
            presented.append(path_key)
        if len(presented) != 1:
            return ("two_keys" if presented else "missing_key"), ""
        found = self.row(snapshot, presented[0])
        if found is None:
            return "unknown_key", ""
        row, is_previous = found
        if is_previous and (row.previous_expires_at or 0) <= now:
            return "key_rotated", row.prefix
        cause = snapshot.why_unusable(row, now)
        if not cause:
            cause = "key_ip_denied" if path_key is None or row.rights[4] else "key_in_path"
        return cause, row.prefix

    def row(self, snapshot: Snapshot, credential: bytes) -> tuple[KeyRow, bool] | None:
        """The key with a secret, usable or not, and whether that was its secret before the last rotation."""
        for digested in self._digests(snapshot, credential):
            found = snapshot.tables.digests.get(digested)
            if found is not None and (row := snapshot.tables.keys.get(found[0])) is not None:
                return row, found[1]
        return None


def check_address(snapshot: Snapshot, address: Address | None) -> None:
    """Raises Forbidden where a rule for all shuts an address out."""
    if not snapshot.ip_all.admits(address):
        raise shut_out()


def check_place(key: Key, address: Address | None, *, is_in_path: bool = False) -> None:
    """Raises Unauthorized where a rule of the key or of its tenant shuts an address out."""
    if not (key.tenant_ip.admits(address) and key.key_ip.admits(address)):
        raise not_accepted(is_in_path=is_in_path)


def shut_out() -> Forbidden:
    return Forbidden("ip_denied", "Calls from this address are not allowed here.")


def not_accepted(*, is_in_path: bool = False) -> Unauthorized:
    return Unauthorized("invalid_key", NOT_ACCEPTED_IN_PATH if is_in_path else NOT_ACCEPTED)


def missing_key() -> Unauthorized:
    return Unauthorized("missing_key", NO_KEY, headers={b"www-authenticate": b'Bearer realm="Ollama Gateway"'})


def check_right(key: Key, route: Route) -> None:
    """Raises Forbidden where the key lacks the class of endpoints."""
    right = route.right
    if right is Right.INFER and not key.may_infer:
        raise Forbidden("endpoint_not_allowed", "This API key may not generate. Ask its owner for the right.")
    if right is Right.LIST and not key.may_list:
        raise Forbidden("endpoint_not_allowed", "This API key may not list models. Ask its owner for the right.")
    if right is Right.MANAGE and not key.may_manage:
        raise Forbidden("endpoint_not_allowed", "This API key may not manage models. Ask its owner for the right.")


def resolve_model(snapshot: Snapshot, key: Key, route: Route, asked: object, installed: Installed = NOTHING) -> Model:
    """What the named model is to this key. Raises BadRequest, NotFound (also for models it may not use)."""
    if not asked:
        status, message = route.missing_model
        raise _model_refusal(status, message)
    assert isinstance(asked, str)
    if len(asked) > MAX_LENGTH:
        raise BadRequest("invalid model name", "invalid_model_name")
    try:
        model = snapshot.model(key, asked, installed)
    except InvalidModelName as exc:
        raise BadRequest(str(exc), "invalid_model_name") from None
    if not model.allowed and model.stands_for in WORDS:
        raise no_default_model(model.asked.shown, model.stands_for)
    if not model.allowed:
        # As for a model that does not exist: which models others have is not for this key to know.
        raise NotFound("model_not_allowed", route.unknown_model.format(asked, model.asked.shown))
    return model


def no_default_model(asked: str, target: str) -> NotFound:
    words = WORDS[target]
    message = (
        f'"{asked}" stands for {words}, but no backend has one that this key may use. Choose {words} in the admin '
        f"under Default models, or pull a model."
    )
    return NotFound(NO_DEFAULT_MODEL, message)


def _model_refusal(status: int, message: str) -> Refusal:
    return NotFound("model_not_found", message) if status == 404 else BadRequest(message)
