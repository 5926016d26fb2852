"""Multipart forms, read as they arrive and within bounds (J11). Pure: nothing of a form is passed on as it came."""

from collections.abc import Mapping
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy.errors import BadRequest, TooLarge

MAX_FILE = 25 << 20
MAX_FIELD = 64 << 10
MAX_PARTS = 16
MAX_HEADERS = 8  # of a part
MAX_HEADER = 1024  # bytes of a line
# Preamble, boundaries and headers; what a form holds besides its fields and its file.
MAX_FRAMING = 64 << 10

_PLAIN_ENCODINGS = (b"", b"binary", b"8bit", b"7bit")
_BOUNDARY = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'()+_,-./:=? ")


@dataclass(frozen=True, slots=True)
class Form:
    fields: Mapping[str, str]
    file: bytes | None


class FormReader:
    """`feed` it the body, then ask for the `form`. Both raise BadRequest and TooLarge."""

    def __init__(self, content_type: bytes, file_name: str) -> None:
        """`file_name`: the one field that is a file. Fields may come once each."""
        self._file_name = file_name
        self._fields: dict[str, bytearray] = {}
        self._parts = 0
        self._size = 0
        self._ended = False
        # The part that is being read.
        self._name = ""
        self._header = b""
        self._headers: dict[bytes, bytes] = {}
        self._value = bytearray()
        self._parser = MultipartParser(
            _boundary_in(content_type),
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._data,
                "on_end": self._end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER,
        )

    def feed(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MAX_FILE + MAX_PARTS * MAX_FIELD + MAX_FRAMING:
            raise TooLarge("body_too_large", f"The form is larger than a file of {MAX_FILE} bytes needs.")
        try:
            self._parser.write(piece)
        except FormParserError:
            raise BadRequest("the body is no valid multipart form") from None

    @property
    def form(self) -> Form:
        """What the whole form holds."""
        if not self._ended:
            raise BadRequest("the multipart form has no end: its closing boundary is missing")
        file = self._fields.pop(self._file_name, None)
        try:
            fields = {name: value.decode() for name, value in self._fields.items()}
        except UnicodeDecodeError:
            raise BadRequest("the fields of the form must be UTF-8") from None
        return Form(fields, bytes(file) if file is not None else None)

    # The parser's callbacks.

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest(f"the form has more than {MAX_PARTS} parts")
        self._headers = {}
        self._header = b""
        self._value = bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        name = self._header.lower()
        if name in self._headers:
            raise BadRequest("a part of the form has a header twice")
        self._headers[name] = bytes(self._value)
        self._header, self._value = b"", bytearray()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("latin-1")
        if kind != b"form-data" or not name:
            raise BadRequest("each part of the form needs a Content-Disposition: form-data with a name")
        if self._headers.get(b"content-transfer-encoding", b"").strip().lower() not in _PLAIN_ENCODINGS:
            raise BadRequest("the parts of the form must come as they are, without Content-Transfer-Encoding")
        if name in self._fields:
            raise BadRequest(f"the form has the field {name[:60]!r} twice")
        self._name = name
        self._value = self._fields[name] = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        limit = MAX_FILE if self._name == self._file_name else MAX_FIELD
        if len(self._value) + end - start > limit:
            raise TooLarge("body_too_large", f"{self._name[:60]!r} is larger than the {limit} bytes that are accepted.")
        self._value += data[start:end]

    def _end(self) -> None:
        self._ended = True


def _boundary_in(content_type: bytes) -> bytes:
    kind, _, rest = content_type.partition(b";")
    if kind.strip().lower() != b"multipart/form-data":
        raise BadRequest("the body must be a multipart form: send Content-Type multipart/form-data")
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if rest.lower().count(b"boundary=") != 1 or not 1 <= len(boundary) <= 70 or not _BOUNDARY.issuperset(boundary):
        raise BadRequest("the Content-Type of a multipart form needs one boundary of 1 to 70 plain characters")
    return boundary
