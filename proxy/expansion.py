"""Request bodies in zstd, which Ollama takes on its /v1 routes (ollama-api §0, J9). Pure."""

from collections.abc import Iterator

from zstandard import ZstdDecompressor, ZstdError

from proxy.errors import BadRequest, TooLarge

# As Ollama has it.
MAX_EXPANDED = 20 << 20
# What a frame may have us set aside: what the strongest level asks for a body of that size.
_MAX_WINDOW = 32 << 20
# Four bytes of a frame may stand for 128 KiB, so this is how many are looked at in one go: 4 MiB at worst.
_STEP = 128
# After so many bytes, of what was read or of what came out, others may run.
SLICE = 64 << 10


def expanding(raw: bytes, limit: int = MAX_EXPANDED) -> Iterator[bytes]:
    """The pieces of what was compressed, each made when it is asked for. Raises BadRequest, TooLarge.

    What a frame says of its size is not believed: a body of some kilobytes may expand to gigabytes, and one of
    megabytes to nothing.
    """
    expanded = 0
    pieces: list[bytes] = []
    since = 0
    source = ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj(read_across_frames=True)
    view = memoryview(raw)
    try:
        for start in range(0, len(raw), _STEP):
            piece = source.decompress(view[start : start + _STEP])
            since += _STEP
            if piece:
                expanded += len(piece)
                since += len(piece)
                pieces.append(piece)
                if expanded > limit:
                    text = f"The body expands to more than the {limit} bytes that are accepted."
                    raise TooLarge("body_too_large", text)
            if since >= SLICE:
                yield b"".join(pieces)
                pieces.clear()
                since = 0
    except ZstdError as exc:
        raise BadRequest(f"the body is not valid zstd: {exc}") from None
    yield b"".join(pieces)
