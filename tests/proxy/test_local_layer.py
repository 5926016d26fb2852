"""How processes of one machine hear of each other without Redis. Each layer stands for a process."""

import asyncio
import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from proxy.live import local_layer
from proxy.live.local_layer import LocalChannelLayer, short

PATIENCE = 10


@pytest.fixture
def run():
    """Not below tmp_path, which may be longer than a socket's path."""
    with tempfile.TemporaryDirectory(prefix="ogw-") as directory:
        yield Path(directory) / "run"


@pytest.fixture
async def layers(run):
    made = [LocalChannelLayer(run) for _ in range(3)]
    yield made
    for layer in made:
        await layer.flush()


async def received(layer, channel):
    async with asyncio.timeout(PATIENCE):
        return await layer.receive(channel)


async def test_a_group_hears_what_any_process_says(layers):
    channels = [await layer.new_channel() for layer in layers]
    for layer, channel in zip(layers[:2], channels[:2], strict=True):
        await layer.group_add("workers", channel)
    message = {"type": "cancel", "call": "1", "by": "Zoë", "picture": {"calls": [None, 1.5, "x" * 500_000]}}
    await layers[2].group_send("workers", message)
    for layer, channel in zip(layers[:2], channels[:2], strict=True):
        assert await received(layer, channel) == message
    await layers[0].group_discard("workers", channels[0])
    await layers[0].group_send("workers", {"type": "second"})
    assert await received(layers[1], channels[1]) == {"type": "second"}
    await layers[1].send(channels[0], {"type": "only for you"})
    assert await received(layers[0], channels[0]) == {"type": "only for you"}


async def test_what_says_and_does_not_listen_leaves_nothing_behind(layers, run):
    await layers[0].group_send("workers", {"type": "x"})
    assert not run.exists()
    await layers[0].new_channel()
    await layers[1].group_send("workers", {"type": "x"})
    assert len(list(run.iterdir())) == 1
    await layers[0].flush()
    assert not run.exists()


async def test_a_channel_of_a_process_that_ended_is_an_error_for_who_sends(layers):
    channel = await layers[0].new_channel()
    await layers[0].flush()
    for gone in (channel, "specific.1!../../etc/passwd", "specific.1!", "none"):
        with pytest.raises(OSError, match=r"No such file|is no process"):
            await layers[1].send(gone, {"type": "x"})


async def test_sockets_of_dead_processes_are_removed_once_they_are_old(layers, run):
    channel = await layers[0].new_channel()
    await layers[0].group_add("workers", channel)
    for name, age in (("1-de", 3600), ("2-ae", 0)):
        path = run / name
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        os.utime(path, (time.time() - age,) * 2)
    await layers[1].group_send("workers", {"type": "x"})
    assert await received(layers[0], channel) == {"type": "x"}
    assert {path.name for path in run.iterdir()} == {"2-ae", channel.rpartition("!")[2]}


async def test_a_process_that_hangs_holds_up_nobody(layers, run):
    channel = await layers[0].new_channel()
    await layers[0].group_add("workers", channel)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(run / "1-ab"))
        hung.listen(1)  # and never accepts
        since = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            for number in range(4):
                await layers[1].group_send("workers", {"type": "x", "number": number, "fill": "x" * 1_000_000})
        for number in range(4):
            assert (await received(layers[0], channel))["number"] == number
    print(f"\n  four messages beside a process that hangs: {time.monotonic() - since:.1f} s")


async def test_what_nobody_reads_is_bounded_and_the_newest_stays(layers):
    channel = await layers[0].new_channel()
    for number in range(local_layer.MAX_UNREAD + 5):
        await layers[0].send(channel, {"number": number})
    async with asyncio.timeout(PATIENCE):
        while layers[0]._unread[channel][-1]["number"] < local_layer.MAX_UNREAD + 4:
            await asyncio.sleep(0.01)
    assert len(layers[0]._unread[channel]) == local_layer.MAX_UNREAD
    assert (await received(layers[0], channel)) == {"number": 5}


async def test_junk_on_the_socket_harms_nobody(layers, run):
    channel = await layers[0].new_channel()
    path = run / channel.rpartition("!")[2]
    for junk in (b"", b"\0", b"\0\0\0\5junk!", b"\xff" * 50, b"\0\0\0\2{}", b"\0\0\0\2[]"):
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(junk)
        writer.close()
    await layers[1].send(channel, {"type": "sound"})
    assert await received(layers[0], channel) == {"type": "sound"}


async def test_a_directory_that_others_may_write_to_is_refused(run):
    run.mkdir()
    run.chmod(0o777)
    with pytest.raises(PermissionError, match="of this user alone"):
        await LocalChannelLayer(run).new_channel()


def test_a_path_that_is_too_long_for_a_socket_becomes_a_short_one_of_the_same_user(tmp_path):
    long = tmp_path / ("x" * 100)
    assert short(long) == short(long)
    assert short(long) != short(long / "y")
    assert str(os.geteuid()) in short(long).name
    assert len(str(short(long))) < 70
