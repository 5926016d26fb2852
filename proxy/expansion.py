"""Request bodies in zstd, which Ollama takes on its /v1 routes (ollama-api §0, J9). Pure."""

from collections.abc import Iterator

from zstandard import ZstdDecompressor, ZstdError

from proxy.errors import BadRequest, TooLarge

# As Ollama has it.
MAX_EXPANDED = 20 << 20
# What a frame may have us set aside: what the strongest level asks for a body of that size.
_MAX_WINDOW = 32 << 20
SLICE = 256 << 10


def expanding(raw: bytes, limit: int = MAX_EXPANDED) -> Iterator[bytes]:
    """The pieces of what was compressed, each made when it is asked for. Raises BadRequest, TooLarge.

    What a frame says of its size is not believed: a body of some kilobytes may expand to gigabytes.
    """
    size = 0
    reader = ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(raw, read_across_frames=True)
    try:
        while piece := reader.read(SLICE):
            size += len(piece)
            if size > limit:
                raise TooLarge("body_too_large", f"The body expands to more than the {limit} bytes that are accepted.")
            yield piece
    except ZstdError as exc:
        raise BadRequest(f"the body is not valid zstd: {exc}") from None
