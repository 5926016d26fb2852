"""`options`, `think`, `format` and `keep_alive` of a native call."""

import binascii
import json
from collections.abc import Sequence
from typing import Any

from proxy.fake_ollama.clock import parse_keep_alive
from proxy.fake_ollama.errors import ApiError
from proxy.fake_ollama.gojson import DecodeError
from proxy.fake_ollama.library import Model
from proxy.fake_ollama.scheduler import AUTOMATIC, LoadOptions

INTEGERS = [
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "draft_num_predict",
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
]
FLOATS = ["top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"]
LOAD_TIME = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
EFFORTS = ("low", "medium", "high", "max")
NO_IMAGES = json.dumps(
    {
        "error": {
            "code": 500,
            "message": "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "type": "server_error",
        }
    },
    separators=(",", ":"),
)


def check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is None:
            continue
        number = type(value) in (int, float)
        if name in INTEGERS and not number:
            raise ApiError(500, f'option "{name}" must be of type integer')
        if name in FLOATS and not number:
            raise ApiError(500, f'option "{name}" must be of type float32')
        if name == "use_mmap" and type(value) is not bool:
            raise ApiError(500, 'option "use_mmap" must be of type boolean')
        if name == "stop" and not (type(value) is list and all(type(item) is str for item in value)):
            raise ApiError(500, 'option "stop" must be of type array')


def load_options(options: dict[str, Any], *, shift: bool | None) -> LoadOptions:
    found = {name: options[name] for name in LOAD_TIME if options.get(name) is not None}
    if not found and shift is not False:
        return AUTOMATIC
    whole: dict[str, Any] = {name: value if type(value) is bool else int(value) for name, value in found.items()}
    return LoadOptions(**whole, shift=shift is not False)


def whole_number(value: Any) -> int | None:
    return None if value is None else int(value)


def seed_of(options: dict[str, Any]) -> int | None:
    seed = whole_number(options.get("seed"))
    return None if seed is None or seed < 0 else seed


def limit_of(options: dict[str, Any]) -> int | None:
    limit = whole_number(options.get("num_predict"))
    return limit if limit and limit > 0 else None


def keep_alive_of(body: dict[str, Any]) -> float | None:
    try:
        return parse_keep_alive(body.get("keep_alive"))
    except DecodeError as error:
        raise ApiError(400, str(error)) from error


def check_top_logprobs(body: dict[str, Any]) -> None:
    if not 0 <= (body.get("top_logprobs") or 0) <= 20:
        raise ApiError(400, "top_logprobs must be between 0 and 20")


def think_of(body: dict[str, Any], model: Model, asked: str) -> bool:
    think = body.get("think")
    if think is not None and type(think) is not bool and think not in EFFORTS:
        shown = json.dumps(think)
        raise ApiError(400, f'invalid think value: {shown} (must be "high", "medium", "low", "max", true, or false)')
    if model.can("thinking"):
        return think is not False
    if think:
        raise ApiError(400, f'"{asked}" does not support thinking')
    return False


def format_of(body: dict[str, Any]) -> Any:
    wanted = body.get("format")
    if wanted in (None, ""):
        return None
    if wanted == "json" or isinstance(wanted, dict):
        return wanted
    shown = json.dumps(wanted)
    raise ApiError(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def check_images(images: Sequence[str], model: Model) -> None:
    for image in images:
        try:
            binascii.a2b_base64(image, strict_mode=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, "illegal base64 data at input byte 0") from None
    if images and not model.can("vision"):
        raise ApiError(500, NO_IMAGES, charset=False)
