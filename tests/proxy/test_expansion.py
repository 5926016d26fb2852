"""Row J9: bodies in zstd are expanded within a bound, whatever their frames say."""

import random
import time
import tracemalloc

import pytest
import zstandard

from proxy import expansion
from proxy.errors import BadRequest, Refusal, TooLarge
from proxy.expansion import expanding


def expanded(raw, limit=expansion.MAX_EXPANDED):
    return b"".join(expanding(raw, limit))


TEXT = b'{"model":"m","messages":[]}' * 1000


@pytest.mark.parametrize("level", [1, 3, 19, 22])
@pytest.mark.parametrize("size", [0, 1, 27_000, 1_000_000])
def test_j9_what_was_compressed_comes_back(level, size):
    text = (TEXT * (size // len(TEXT) + 1))[:size]
    assert expanded(zstandard.compress(text, level)) == text


def test_j9_a_body_of_the_permitted_size_passes_at_every_level():
    text = random.Random(0).randbytes(1 << 20) * 20
    for level in (3, 22):
        assert expanded(zstandard.compress(text, level)) == text


def test_j9_frames_may_follow_each_other_and_need_not_know_their_size():
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    stream = zstandard.ZstdCompressor().compressobj()
    assert expanded(frame + stream.compress(TEXT) + stream.flush() + frame) == TEXT * 3


def bombs():
    """(name, frame); each would expand to a gigabyte or more."""
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    yield "told", b"".join([*(stream.compress(bytes(1 << 20)) for _ in range(1000)), stream.flush()])
    # A block of one byte, repeated 128 KiB times, is four bytes long: magic, descriptor, window; then blocks.
    block = (128 << 10 << 3 | 1 << 1).to_bytes(3, "little") + b"x"
    yield "repeated", b"\x28\xb5\x2f\xfd\x00\x58" + block * 10_000
    # One that says it holds nine bytes.
    yield "understated", b"\x28\xb5\x2f\xfd\x20\x09" + block * 10_000
    # One that says it holds 2**60.
    yield "overstated", b"\x28\xb5\x2f\xfd\xc0\x58" + (1 << 60).to_bytes(8, "little") + block * 10_000
    yield "many frames", zstandard.compress(bytes(1 << 20)) * 2000


@pytest.mark.parametrize("bomb", [pytest.param(frame, id=name) for name, frame in bombs()])
def test_j9_a_bomb_is_refused_without_being_unpacked(bomb):
    tracemalloc.start()
    began = time.thread_time()
    with pytest.raises(Refusal):
        for _ in expanding(bomb):
            pass
    took = time.thread_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{len(bomb)} bytes refused after {took * 1000:.0f} ms and {peak >> 10} KiB at once")
    assert peak < 16 << 20


def test_j9_the_bound_is_exact():
    raw = zstandard.compress(bytes(1000))
    assert len(expanded(raw, 1000)) == 1000
    with pytest.raises(TooLarge):
        expanded(raw, 999)


def test_j9_a_window_larger_than_the_bound_is_refused():
    """Else a header alone has us set aside gigabytes."""
    with pytest.raises(BadRequest):
        expanded(b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00")


EMPTY = zstandard.compress(b"")
SLOW = {
    "nothing but zeros": zstandard.compress(bytes(20 << 20)),
    "nothing to gain": zstandard.compress(random.Random(0).randbytes(1 << 20)) * 19,
    "frames of nothing": EMPTY * (2_000_000 // len(EMPTY)),
    "frames to be skipped": b"\x50\x2a\x4d\x18\x00\x00\x00\x00" * 250_000,
    "blocks of nothing": b"\x28\xb5\x2f\xfd\x00\x58" + b"\x00\x00\x00" * 700_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_j9_others_may_run_in_between(name):
    """Whether much comes out of little or little out of much."""
    raw = SLOW[name]
    longest, pieces = 0.0, 0
    source = expanding(raw)
    while True:
        began = time.thread_time()
        piece = next(source, None)
        if piece is None:
            break
        longest, pieces = max(longest, time.thread_time() - began), pieces + 1
        assert len(piece) <= 8 << 20
    print(f"{name}: {pieces} pieces, the longest took {longest * 1000:.2f} ms")
    assert pieces >= len(raw) // expansion.SLICE
    assert longest < 1


def test_j9_mangled_frames_are_refused_or_expanded_and_nothing_else():
    rng = random.Random("zstd")
    whole = zstandard.compress(TEXT)
    for _ in range(3000):
        raw = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            expanded(bytes(raw[: rng.randint(1, len(raw))]))
        except Refusal:
            pass
