"""What a prompt weighs: bytes of which four are a token, by which it is estimated until a backend has counted it."""

from collections.abc import Iterator
from typing import Any

from proxy.dialects.base import Request

# What a model that sees makes of one picture, about; its bytes say nothing of it.
TOKENS_PER_IMAGE = 800
# Speech is some 25 tokens a second to models that hear, and about 16 KB a second as files are usually compressed.
AUDIO_BYTES_PER_TOKEN = 640
# No body of this size holds so much of either that it matters.
_SMALL = 8 << 10
# Beyond it nothing is looked for: what is left weighs as text does, and the loop is not held.
_MAX_LOOKS = 2000


def weigh(request: Request, size: int) -> int:
    """`size`: of the body. Pictures and sounds come in base64, and are no text."""
    if size <= _SMALL:
        return size
    for data, tokens in _media(request):
        size += 4 * tokens - len(data)
    return max(size, 0)


def of_sound(size: int) -> int:
    """Tokens of a recording of so many bytes."""
    return -(-size // AUDIO_BYTES_PER_TOKEN)


def _media(request: Request) -> Iterator[tuple[str, int]]:
    """(base64, tokens) of each picture and sound, wherever the dialects have them."""
    waiting: list[Any] = [request, request.get("messages"), request.get("input")]
    looked_at = 0
    while waiting and looked_at < _MAX_LOOKS:
        value = waiting.pop()
        looked_at += 1
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        waiting += [value.get("content"), value.get("output")]
        images = value.get("images")
        for image in (*(images if isinstance(images, list) else ()), value.get("image_url"), value.get("source")):
            data = (image.get("url") or image.get("data")) if isinstance(image, dict) else image
            if isinstance(data, str) and data:
                yield data, TOKENS_PER_IMAGE
        sound = value.get("input_audio")
        if isinstance(sound, dict) and isinstance(sound.get("data"), str):
            yield sound["data"], of_sound(len(sound["data"]) * 3 // 4)
