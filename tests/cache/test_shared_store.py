"""Kept answers in a real Redis: two gateways that share it, and what happens when it fails."""

import asyncio

import pytest
import pytest_asyncio

from proxy.cache import shared
from proxy.cache.entries import Entry
from proxy.cache.policy import NO_PURGES
from proxy.cache.shared import SharedStore
from proxy.fake_ollama import FakeOllama
from tests.cache.house import house
from tests.live.seen import calls
from tests.redis_server import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "llama3.2"
EMBEDDING = "nomic-embed-text"


@pytest.fixture(scope="module")
def redis():
    server = RedisServer().start()
    yield server
    server.resume() if server.process else None
    server.remove()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake():
    async with FakeOllama(models=[MODEL, EMBEDDING], slots=50) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def pair(fake, redis, tmp_path):
    fake.reset()
    redis.flush()
    models = f"{MODEL}:latest", f"{EMBEDDING}:latest"
    async with (
        house([fake], tmp_path / "1", *models, redis_url=redis.url) as one,
        house([fake], tmp_path / "2", *models, redis_url=redis.url) as two,
    ):
        two.digests.update(one.digests)
        two.keys.update(one.keys)
        two.use()
        for each in (one, two):
            each.runtime.cache.start()
            await each.until(lambda each=each: each.runtime.cache.shared.usable)
        yield one, two


def chat(text="x", **more):
    return {"model": MODEL, "stream": False, "messages": [{"role": "user", "content": text}], **more}


async def stored(redis, count):
    with redis.client() as client:
        async with asyncio.timeout(15):
            while len(list(client.scan_iter("ogw:cache:*"))) != count:
                await asyncio.sleep(0.01)
        return list(client.scan_iter("ogw:cache:*"))


async def test_what_one_process_has_generated_another_gives(pair, redis, fake):
    one, two = pair
    first = await one.ask("/api/chat", chat())
    (name,) = await stored(redis, 1)
    second = await two.ask("/api/chat", chat())
    third = await two.ask("/api/chat", chat(stream=True))
    assert [answer.cache for answer in (first, second, third)] == ["MISS", "HIT", "HIT"]
    assert second.body == first.body
    assert len(calls(fake)) == 1
    with redis.client() as client:
        assert 0 < client.pttl(name) <= 3_600_000
        value = client.get(name)
    for word in (b"content", b"assistant", b"llama", b"model"):
        assert word not in value, "it is sealed"


async def test_embeddings_are_had_by_one_question(pair, redis):
    one, two = pair
    texts = [f"{n}" for n in range(20)]
    await one.ask("/api/embed", {"model": EMBEDDING, "input": texts})
    await stored(redis, 20)
    answer = await two.ask("/api/embed", {"model": EMBEDDING, "input": texts})
    assert answer.cache == "HIT"


async def test_what_somebody_else_wrote_into_redis_is_not_believed(pair, redis):
    one, two = pair
    await one.ask("/api/chat", chat("a"))
    await one.ask("/api/chat", chat("b"))
    names = await stored(redis, 2)
    with redis.client() as client:
        a, b = client.mget(names)
        client.mset({names[0]: b, names[1]: a})
        assert (await two.ask("/api/chat", chat("a"))).cache == "MISS", "answers do not change places"
        client.set(names[0], b"made up")
        client.set(names[1], b"")
    assert (await two.ask("/api/chat", chat("b"))).cache == "MISS"


async def test_a_purge_deletes_in_redis_what_it_is_about(pair, redis):
    one, two = pair
    await one.ask("/api/chat", chat())
    await one.ask("/api/chat", chat(), key="two")
    await stored(redis, 2)
    for each in pair:
        each.use(purges=NO_PURGES._replace(tenants={1: 1}))
    await stored(redis, 1)
    assert (await two.ask("/api/chat", chat())).cache == "MISS"
    assert (await two.ask("/api/chat", chat(), key="two")).cache == "HIT"
    for each in pair:
        each.use(purges=NO_PURGES._replace(tenants={1: 1}, models={f"{MODEL}:latest": 2}))
    await stored(redis, 0)


@pytest.mark.parametrize("way", ["pause", "kill", "flush"])
async def test_while_redis_fails_no_client_sees_an_error(pair, redis, way):
    """Calls go on all the time; each question is asked by both gateways, some again."""
    one, two = pair
    answers = []
    ended = asyncio.Event()

    async def client(house, number):
        count = 0
        while not ended.is_set() or count < 5:
            answers.append(await house.ask("/api/chat", chat(f"{count % 7} {number % 3}")))
            answers.append(await house.ask("/api/embed", {"model": EMBEDDING, "input": [f"{count}", f"{number}"]}))
            count += 1
            await asyncio.sleep(0)

    clients = [asyncio.ensure_future(client(pair[number % 2], number)) for number in range(6)]
    await one.until(lambda: len(answers) > 60)
    try:
        getattr(redis, way)()
        before = len(answers)
        await one.until(lambda: len(answers) > before + 200)
        if way != "flush":
            assert not one.runtime.cache.shared.usable
    finally:
        if way == "pause":
            redis.resume()
        if way == "kill":
            redis.start()
    for each in pair:
        await each.until(lambda each=each: each.runtime.cache.shared.usable)
    ended.set()
    await asyncio.gather(*clients)
    assert {answer.status for answer in answers} == {200}
    assert all(answer.ended for answer in answers)
    await one.ask("/api/chat", chat(f"after {way}"))
    await one.until(lambda: one.runtime.cache.shared._connection is not None)
    with redis.client() as client_:
        await one.until(lambda: client_.dbsize() > 0)
    assert (await two.ask("/api/chat", chat(f"after {way}"))).cache == "HIT"


async def test_a_hung_redis_costs_a_call_no_more_than_its_patience(redis):
    store = SharedStore(redis.url, b"s" * 32, 0.05)
    store.start()
    entry = Entry(b"body", False, b"application/json", "m", "m:latest", "d", "t1", 1.0)
    async with asyncio.timeout(20):
        while not store.usable:
            await asyncio.sleep(0.01)
        store.put(store.name("t1", "m", b"k"), entry, 60)
        assert await store.get([store.name("t1", "m", b"k"), "other"]) == [entry, None]
        redis.pause()
        try:
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert await store.get(["a"]) == [None]
            first = loop.time() - began
            began = loop.time()
            assert await store.get(["a"]) == [None]
            print(f"the first call waited {first * 1000:.0f} ms, the next {(loop.time() - began) * 1000:.3f} ms")
            assert not store.usable
            store.put("a", entry, 60)
        finally:
            redis.resume()
        while not store.usable:
            await asyncio.sleep(0.01)
    await store.close()


async def test_a_look_up_that_comes_late_costs_itself_and_not_the_connection(redis, monkeypatch):
    """Vectors of a hundred inputs may take longer on their way than a call waits, and Redis be well all the time."""
    monkeypatch.setattr(shared, "CONNECTION_PATIENCE", 60.0)
    store = SharedStore(redis.url, b"s" * 32, 0.05)
    store.start()
    entry = Entry(b"body", False, b"application/json", "m", "m:latest", "d", "t1", 1.0)
    async with asyncio.timeout(30):
        while not store.usable:
            await asyncio.sleep(0.01)
        store.put("late", entry, 60)
        connection = store._connection
        redis.pause()
        try:
            assert await store.get(["late"]) == [None]
            assert not store.usable, "nobody else waits meanwhile"
        finally:
            redis.resume()
        while not store.usable:
            await asyncio.sleep(0.01)
        assert store._connection is connection
        assert await store.get(["late"]) == [entry]
    await store.close()


async def test_connections_that_cannot_be_used_are_closed(monkeypatch):
    """A Redis that wants a password, or that is loading, refuses the first command of each."""
    monkeypatch.setattr(shared, "RETRY_SECONDS", 0.01)
    redis = RedisServer().start()
    store = SharedStore(redis.url, b"s" * 32, 0.05)
    try:
        with redis.client() as client:
            client.config_set("requirepass", "secret")
            client.execute_command("AUTH", "secret")
            before = client.info()["total_connections_received"]
            store.start()
            async with asyncio.timeout(30):
                while client.info()["total_connections_received"] < before + 20:
                    await asyncio.sleep(0.02)
                while client.info()["connected_clients"] > 4:
                    await asyncio.sleep(0.02)
            assert "NOAUTH" in store.problem
    finally:
        await store.close()
        redis.remove()


async def test_a_full_redis_still_gives_what_it_has(redis):
    store = SharedStore(redis.url, b"s" * 32, 1.0)
    store.start()
    entry = Entry(b"body" * 1000, False, b"application/json", "m", "m:latest", "d", "t1", 1.0)
    with redis.client() as client:
        async with asyncio.timeout(20):
            while not store.usable:
                await asyncio.sleep(0.01)
            store.put("first", entry, 60)
            assert await store.get(["first"]) == [entry]
            client.config_set("maxmemory", "1mb")
            try:
                store.put("second", entry, 60)
                assert await store.get(["first", "second"]) == [entry, None]
                assert store.usable
                store.put("third", entry, 60)
            finally:
                client.config_set("maxmemory", "0")
            assert await store.get(["third"]) == [None], "it is left alone for a while"
    await store.close()


async def test_without_redis_at_the_start_calls_are_answered(fake, tmp_path):
    async with house([fake], tmp_path, f"{MODEL}:latest", redis_url="redis://127.0.0.1:1/0") as home:
        home.runtime.cache.start()
        assert [(await home.ask("/api/chat", chat("nobody there"))).cache for _ in range(2)] == ["MISS", "HIT"]


async def test_answers_stay_out_of_redis_where_that_is_wanted(fake, redis, tmp_path):
    async with house([fake], tmp_path, f"{MODEL}:latest", redis_url=redis.url, cache_in_redis=False) as home:
        assert home.runtime.cache.shared is None
