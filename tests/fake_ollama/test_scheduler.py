"""Slots, the load queue, and callers that leave in every phase."""

import asyncio

import pytest

from proxy.fake_ollama import Model

from .conftest import chat, read_answer, serving


async def loaded(wire):
    return [model["name"] for model in (await wire.call("GET", "/api/ps")).lines[0]["models"]]


async def test_slots_are_given_in_order_of_arrival(fake, wire):
    fake.faults(hang_before_headers=True)
    readers = []
    for number in range(4):
        reader, _ = await wire.send("POST", "/api/chat", chat(text=str(number), stream=False))
        readers.append(reader)
        await fake.saw_call(number + 1)
        await (fake.saw_running() if number == 0 else fake.saw("waiting", number))
    assert fake.counts()["generations_running"] == 1
    for number, reader in enumerate(readers):
        fake.release()
        assert (await read_answer(reader)).status == 200
        if number < 3:
            await fake.saw("generation", number + 2)
    ended = [call.ended for call in fake.calls]
    assert ended == sorted(ended)


async def test_several_slots_run_at_once(wire):
    async with serving(models=["m", "bge-m3"], slots=3) as (fake, wire):
        fake.faults(hang_after_chunks=1)
        for _ in range(4):
            await wire.send("POST", "/api/chat", chat("m"))
        await fake.saw_running(3)
        await fake.saw("waiting", 1)
        # An embedding model has one slot whatever the setting.
        fake.clear_faults()
        fake.faults(hang_before_headers=True)
        for _ in range(2):
            await wire.send("POST", "/api/embed", {"model": "bge-m3", "input": "x"})
        await fake.saw_running(4)
        await fake.saw("waiting", 2)


async def test_waiting_in_line_can_be_left(fake, wire):
    fake.faults(hang_after_chunks=1)
    await wire.send("POST", "/api/chat", chat())
    await fake.saw_running()
    _, second = await wire.send("POST", "/api/chat", chat())
    await fake.saw("waiting", 1)
    third, _ = await wire.send("POST", "/api/chat", chat())
    await fake.saw("waiting", 2)
    second.close()
    gone = await fake.saw_disconnect()
    assert (gone.index, gone.generated) == (1, False)
    fake.release()
    await fake.saw("generation", 2)
    await fake.saw("hung")
    fake.release()
    assert (await read_answer(third)).lines[-1]["done"] is True
    assert fake.counts()["generations_started"] == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_stops_the_generation_and_frees_the_slot(fake, wire, stream):
    fake.faults(times=1, infinite=True)
    reader, writer = await wire.send("POST", "/api/chat", chat(stream=stream))
    await fake.saw_running()
    if stream:
        await reader.readuntil(b"tok2")
    writer.close()
    gone = await fake.saw_disconnect()
    await fake.saw_idle()
    assert gone.disconnected and not gone.complete and gone.tokens > 0
    assert gone.started < gone.disconnected_at <= gone.ended
    counts = fake.counts()
    assert (counts["generations_running"], counts["generations_disconnected"]) == (0, 1)
    assert (await wire.post("/api/chat", chat())).lines[-1]["done"] is True


async def test_half_closing_is_leaving(fake, wire):
    fake.faults(hang_after_chunks=1)
    reader, writer = await wire.send("POST", "/api/chat", chat())
    await reader.readuntil(b"tok1")
    writer.write_eof()
    await fake.saw_disconnect()
    await fake.saw_idle()


async def test_a_caller_that_stays_to_the_end_did_not_disconnect(fake, wire):
    await wire.post("/api/chat", chat())
    await wire.close()
    await fake.log.until(lambda: fake.counts()["connections_open"] == 0, 5)
    assert fake.calls[0].complete
    assert fake.counts()["disconnected_calls"] == 0


async def test_ps_lists_a_model_after_its_load(fake, wire):
    fake.faults(times=1, hang_load=True)
    reader, _ = await wire.send("POST", "/api/chat", chat(stream=False))
    await fake.saw("load")
    assert await loaded(wire) == []
    assert fake.counts()["loading"] == "llama3.2:latest"
    fake.release()
    assert (await read_answer(reader)).status == 200
    assert await loaded(wire) == ["llama3.2:latest"]


async def test_leaving_aborts_the_load_and_the_next_begins_from_zero(fake, wire):
    fake.faults(times=1, hang_load=True)
    _, first = await wire.send("POST", "/api/chat", chat())
    await fake.saw("load")
    second, _ = await wire.send("POST", "/api/chat", chat(stream=False))
    await fake.saw("queued")
    first.close()
    await fake.saw("load_aborted")
    assert (await read_answer(second)).status == 200
    counts = fake.counts()
    assert counts["loads"] == {"llama3.2:latest": 2}
    assert counts["generations_started"] == 1


async def test_who_leaves_the_load_queue_keeps_a_place_in_it():
    async with serving(models=["a", "b"], max_queue=1) as (fake, wire):
        fake.faults(times=1, hang_load=True)
        first, _ = await wire.send("POST", "/api/chat", chat("a", stream=False))
        await fake.saw("load")
        _, second = await wire.send("POST", "/api/chat", chat("b"))
        await fake.saw("queued")
        second.close()
        await fake.saw_disconnect()
        assert (await wire.post("/api/chat", chat("b"))).status == 503
        fake.release()
        assert (await read_answer(first)).status == 200
        assert (await wire.post("/api/chat", chat("b"))).status == 200
        assert fake.counts()["loads"] == {"a:latest": 1, "b:latest": 1}


async def test_warm_models_go_on_while_another_loads(fake, wire):
    await wire.post("/api/chat", chat())
    fake.faults(model="m", hang_load=True)
    await wire.send("POST", "/api/chat", chat("m"))
    await fake.saw("load", 2)
    assert (await wire.post("/api/chat", chat())).lines[-1]["done"] is True
    # A cold one waits behind the load.
    await wire.send("POST", "/api/chat", chat("llava"))
    await fake.saw("queued")


async def test_another_num_ctx_reloads(fake, wire):
    steps = [
        ({}, 1),
        ({"num_ctx": 4096}, 1),
        ({"num_ctx": 8192}, 2),
        ({}, 3),
        ({"num_gpu": -1}, 3),
        ({"num_gpu": 1}, 4),
    ]
    for options, loads in steps:
        await wire.post("/api/chat", chat(options=options))
        assert fake.counts()["loads"]["llama3.2:latest"] == loads, options
    await wire.post("/api/chat", chat(shift=False))
    assert fake.counts()["loads"]["llama3.2:latest"] == 5
    assert (await wire.call("GET", "/api/ps")).lines[0]["models"][0]["context_length"] == 4096


async def test_a_reload_waits_for_running_calls(fake, wire):
    fake.faults(times=1, hang_after_chunks=1)
    first, _ = await wire.send("POST", "/api/chat", chat())
    await fake.saw_running()
    second, _ = await wire.send("POST", "/api/chat", chat(options={"num_ctx": 8192}, stream=False))
    await fake.saw_call(2)
    assert fake.counts()["generations_started"] == 1
    fake.release()
    assert (await read_answer(first)).lines[-1]["done"] is True
    assert (await read_answer(second)).status == 200
    assert fake.counts()["loads"] == {"llama3.2:latest": 2}


async def test_keep_alive_of_zero_unloads_when_idle(fake, wire):
    await wire.post("/api/chat", chat(keep_alive=0))
    assert await loaded(wire) == []
    await wire.post("/api/chat", chat(keep_alive="1ms"))
    await fake.log.until(lambda: fake.counts()["unloads"] == 2, 5)
    await wire.post("/api/chat", chat(keep_alive=-1))
    await wire.post("/api/chat", chat())
    expires = (await wire.call("GET", "/api/ps")).lines[0]["models"][0]["expires_at"]
    assert int(expires[:4]) > 2300


async def test_unloading_a_busy_model_waits_for_it(fake, wire):
    fake.faults(times=1, hang_after_chunks=1)
    reader, _ = await wire.send("POST", "/api/chat", chat())
    await fake.saw_running()
    answer = await wire.post("/api/generate", {"model": "llama3.2", "keep_alive": 0})
    assert answer.lines[0]["done_reason"] == "unload"
    assert await loaded(wire) == ["llama3.2:latest"]
    fake.release()
    assert (await read_answer(reader)).lines[-1]["done"] is True
    assert await loaded(wire) == []


async def test_copies_share_a_runner(fake, wire):
    await wire.post("/api/copy", {"source": "llama3.2", "destination": "alias"})
    await wire.post("/api/chat", chat("alias"))
    await wire.post("/api/chat", chat())
    assert await loaded(wire) == ["alias:latest"]
    assert fake.counts()["loads"] == {"alias:latest": 1}


async def test_load_time_is_reported(fake, wire):
    fake.faults(times=1, load_seconds=0.03)
    value = (await wire.post("/api/chat", chat(stream=False))).lines[0]
    assert value["total_duration"] >= value["load_duration"] >= 25_000_000


async def test_tokens_are_paced():
    async with serving(models=["m"], tokens_per_second=200) as (_, wire):
        began = asyncio.get_running_loop().time()
        value = (await wire.post("/api/chat", chat("m", options={"num_predict": 8}))).lines[-1]
        took = asyncio.get_running_loop().time() - began
    assert value["eval_count"] == 8
    assert took >= 0.039


async def test_what_does_not_fit_is_not_in_vram():
    async with serving(models=[Model("big", size=40 << 30)], vram=16) as (_, wire):
        await wire.post("/api/generate", {"model": "big"})
        (model,) = (await wire.call("GET", "/api/ps")).lines[0]["models"]
    assert model["size_vram"] == 16 << 30 < model["size"]
