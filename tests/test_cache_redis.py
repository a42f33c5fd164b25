"""A cache in a Redis: shared by all who know it, never the reason of a failure, read as what anybody may have put."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socketserver
import ssl
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, until, until_async
from millstream import APIConnectionError, AsyncClient, Cache, Client, ConfigurationError
from millstream.testing import Answer, MockServer, VirtualClock
from redis_server import RedisServer, free_port, require_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers import Face

    Make = Callable[..., Face]

CANARY = "canary-p4ss/word+0123"
QUOTED = "canary-p4ss%2Fword%2B0123"
HASH = 64


@pytest.fixture(autouse=True)
def redis_is_there() -> None:
    require_redis()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


def seen(server: MockServer) -> int:
    return server.stats.requests


def start(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    filters = ["-W", "error", "-W", "ignore:this is a debug build"]
    command = [sys.executable, *filters, "-c", textwrap.dedent(script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment)


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, "")
    return out


# ---- what is kept ----


@pytest.mark.parametrize("memory_bytes", [0, None])
def test_an_answer_is_there_for_whoever_else_asks(
    make: Make, mock_server: MockServer, redis: RedisServer, memory_bytes: int | None
) -> None:
    one = Cache(redis.url, memory_bytes=memory_bytes)
    first = make(cache=one).create()
    one.flush()
    other = Cache(redis.url, memory_bytes=memory_bytes)
    face = make(cache=other)
    again = [face.create() for _ in range(3)]

    assert [answer.cached for answer in [first, *again]] == [False, True, True, True]
    assert again[0].to_dict() == first.to_dict()
    assert seen(mock_server) == 1
    (key,) = redis.keys()
    assert key.startswith("millstream:")
    assert len(key) == len("millstream:") + HASH
    stats = other.stats()
    assert (stats.hits, stats.misses, stats.entries, stats.bytes) == (3, 0, 1, redis.say("STRLEN", key))


def test_a_url_is_enough_and_names_its_database(make: Make, mock_server: MockServer, redis: RedisServer) -> None:
    url = redis.url.removesuffix("/0") + "/3"
    for _ in range(2):
        face = make(cache=url)
        assert face.batch_complete(["a", "b", "a"]) == ["echo: a", "echo: b", "echo: a"]
        face.client._settings.cache.flush()
    assert seen(mock_server) == 2
    assert (len(redis.keys()), len(redis.keys(database=3))) == (0, 2)


def test_an_answer_lives_for_an_hour_unless_something_else_is_said(make: Make, redis: RedisServer) -> None:
    for ttl, least, most in ((None, 3_590_000, 3_600_000), (86_400, 86_390_000, 86_400_000)):
        redis.say("FLUSHALL")
        cache = Cache(redis.url, ttl=ttl)
        make(cache=cache).complete("hi")
        cache.flush()
        left = redis.say("PTTL", *redis.keys())
        assert isinstance(left, int)
        assert least < left <= most


@pytest.mark.parametrize("memory_bytes", [0, None])
def test_an_answer_is_not_given_once_its_time_is_over(
    make: Make, mock_server: MockServer, redis: RedisServer, memory_bytes: int | None
) -> None:
    make(cache=Cache(redis.url, ttl=2)).complete("hi")
    until(lambda: redis.keys() != [])
    redis.say("PEXPIRE", *redis.keys(), "700")
    # What it has in memory of another's answer lives no longer than that does there.
    face = make(cache=Cache(redis.url, ttl=3600, memory_bytes=memory_bytes))
    face.complete("hi")
    assert seen(mock_server) == 1

    def is_asked_again() -> bool:
        face.complete("hi")
        return seen(mock_server) == 2

    until(is_asked_again)


def test_each_key_has_its_own_answers_unless_they_are_shared(
    make: Make, mock_server: MockServer, redis: RedisServer
) -> None:
    for shared, requests in ((False, 2), (True, 1)):
        before = seen(mock_server)
        for key in (KEY, "sk-other-0123456789"):
            cache = Cache(redis.url, shared=shared)
            make(cache=cache, api_key=key).complete("hi")
            cache.flush()
        assert seen(mock_server) - before == requests


@pytest.mark.parametrize("namespace", ["ai_cache:", "a*[b]?\\:", "münze/"])
def test_a_namespace_is_cleared_and_counted_alone(
    make: Make, mock_server: MockServer, redis: RedisServer, namespace: str
) -> None:
    others = ["a-key", f"{namespace}d41d8cd98f00b204e9800998ecf8427e", f"x{namespace}{'0' * HASH}", f"axb:{'0' * HASH}"]
    for other in others:
        redis.say("SET", other, "somebody else's")
    own, usual = Cache(redis.url, namespace=namespace), Cache(redis.url)
    for cache in (own, usual):
        make(cache=cache).batch_complete(["a", "b", "c"])
        cache.flush()
    assert seen(mock_server) == 6
    assert len([key for key in redis.keys() if key.startswith(namespace)]) == 4
    assert (own.stats().entries, usual.stats().entries) == (3, 3)

    own.clear()
    assert sorted(key for key in redis.keys() if not key.startswith("millstream:")) == sorted(others)
    assert (own.stats().entries, usual.stats().entries) == (0, 3)
    make(cache=own).complete("a")
    assert seen(mock_server) == 7


def test_thousands_of_keys_are_cleared_and_counted(make: Make, redis: RedisServer) -> None:
    cache = Cache(redis.url)
    prompts = [f"question {number}" for number in range(1500)]
    make(cache=cache).batch_complete(prompts)
    assert (cache.stats().entries, len(redis.keys())) == (1500, 1500)
    cache.clear()
    assert redis.keys() == []


def test_large_and_many_answers_come_back_as_they_were(make: Make, mock_server: MockServer, redis: RedisServer) -> None:
    # Not compressible, so that it takes what it takes.
    texts = [os.urandom(300_000).hex() for _ in range(8)] + [f"small {number}" for number in range(300)]
    first, other = Cache(redis.url), Cache(redis.url, memory_bytes=0)
    mock_server.script(*(Answer(text=text) for text in texts[:8]))
    face = make(cache=first)
    for number in range(8):
        assert face.complete(f"large {number}") == texts[number]
    face.batch_complete(texts[8:])
    first.flush()
    face = make(cache=other)
    prompts = [*(f"large {number}" for number in range(8)), *texts[8:]]
    assert face.batch_complete(prompts) == [*texts[:8], *(f"echo: {text}" for text in texts[8:])]
    assert seen(mock_server) == 308


def test_the_last_answers_are_written_at_the_end_of_the_program(mock_server: MockServer, redis: RedisServer) -> None:
    script = f"""
        from millstream import Client
        client = Client(api_key={KEY!r}, base_url={mock_server.base_url!r}, model="m", cache={redis.url!r})
        client.batch_complete([str(number) for number in range(200)])
    """
    assert ended(start(script)) == ""
    assert len(redis.keys()) == 200


def test_streams_are_replayed_from_it(make: Make, mock_server: MockServer, redis: RedisServer) -> None:
    said = []
    for _ in range(2):
        cache = Cache(redis.url)
        face = make(cache=cache)
        pieces, error = face.read(face.client.stream_complete("hi there"))
        said.append("".join(pieces))
        assert error is None
        cache.flush()
    assert said[0] == said[1]
    assert seen(mock_server) == 1


def test_a_virtual_clock_waits_for_it(redis: RedisServer) -> None:
    with VirtualClock() as clock, MockServer(latency=60) as server:
        for _ in range(2):
            cache = Cache(redis.url, single_flight=True)
            with Client(api_key=KEY, base_url=server.base_url, model="m", timeout=None, cache=cache) as client:
                assert client.batch_complete(["a", "b"]) == ["echo: a", "echo: b"]
            cache.flush()
        assert seen(server) == 2
        assert clock.now == pytest.approx(60, abs=1)


# ---- what anybody may have written ----


def test_what_is_no_answer_is_a_miss_that_is_counted_and_replaced(
    make: Make, mock_server: MockServer, redis: RedisServer
) -> None:
    prompts = [str(number) for number in range(9)]
    cache = Cache(redis.url)
    make(cache=cache).batch_complete(prompts)
    cache.flush()
    keys = redis.keys()
    whole = redis.say("GET", keys[0])
    assert isinstance(whole, bytes)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    rubbish: list[bytes] = [b"\0", os.urandom(50), b'{"result": "x", "cached": false}', whole[:-1], bytes(flipped)]
    # The answer of another question, what claims to be of a gigabyte, and what is no string at all.
    rubbish += [whole, whole[:18].replace(whole[1:2], b"\1", 1) + b"\xff\xff\xff\x3f" + b"x" * 50]
    for key, value in zip(keys[1:], rubbish, strict=False):
        redis.say("SET", key, value)
    redis.say("DEL", keys[8])
    redis.say("RPUSH", keys[8], "a list")

    reader = Cache(redis.url, memory_bytes=0)
    face = make(cache=reader)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert face.batch_complete(prompts) == [f"echo: {prompt}" for prompt in prompts]
        reader.flush()
        assert face.batch_complete(prompts) == [f"echo: {prompt}" for prompt in prompts]
    assert seen(mock_server) == 9 + 8
    stats = reader.stats()
    assert (stats.broken, stats.hits, stats.entries) == (8, 10, 9)
    assert len(caught) == 1
    assert "no answer under a key of this cache" in str(caught[0].message)


# ---- outages ----


def test_a_redis_that_is_not_there_costs_a_warning_and_is_used_once_it_is(
    make: Make, mock_server: MockServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path, starts=False) as redis:
        cache = Cache(redis.url, memory_bytes=0)
        face = make(cache=cache)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number in range(20):
                assert face.complete(f"question {number}") == f"echo: question {number}"
            cache.flush()
        assert seen(mock_server) == 20
        assert len(caught) == 1
        assert caught[0].category is RuntimeWarning
        assert f"redis://127.0.0.1:{redis.port}/0 cannot be used now" in str(caught[0].message)
        stats = cache.stats()
        assert (stats.entries, stats.dropped) == (0, 20)
        with pytest.raises(APIConnectionError, match="cannot be cleared"):
            cache.clear()

        redis.start()

        def is_kept() -> bool:
            before = seen(mock_server)
            face.complete("hi")
            return seen(mock_server) == before

        until(is_kept)
        cache.clear()
        assert redis.keys() == []


def test_a_redis_that_dies_and_comes_back_costs_no_call(mock_server: MockServer, redis: RedisServer) -> None:
    prompts = [f"question {number % 50}" for number in range(500)]

    async def ask() -> None:
        cache = Cache(redis.url, memory_bytes=0)
        async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m", cache=cache) as client:

            async def batch() -> None:
                assert await client.batch_complete(prompts) == [f"echo: {prompt}" for prompt in prompts]

            await batch()
            assert seen(mock_server) == 50
            under_way = [asyncio.ensure_future(batch()) for _ in range(4)]
            await asyncio.sleep(0)
            redis.kill()
            await asyncio.gather(*under_way)
            await batch()
            redis.start()

            async def is_kept() -> bool:
                before = seen(mock_server)
                await batch()
                return seen(mock_server) == before

            async with asyncio.timeout(20):
                while not await is_kept():
                    pass

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(ask())
    assert len(caught) == 1


def test_a_connection_that_was_closed_between_two_calls_costs_nothing(
    make: Make, mock_server: MockServer, redis: RedisServer
) -> None:
    cache = Cache(redis.url, memory_bytes=0)
    face = make(cache=cache)
    face.complete("hi")
    for _ in range(3):
        cache.flush()
        redis.say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        face.complete("hi")
    assert seen(mock_server) == 1
    assert cache.stats().dropped == 0


def test_a_redis_that_hangs_is_waited_for_once_and_then_left_alone(
    make: Make, mock_server: MockServer, redis: RedisServer
) -> None:
    cache = Cache(redis.url, memory_bytes=0)
    face = make(cache=cache)
    face.complete("hi")
    cache.flush()
    redis.send(signal.SIGSTOP)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # One call waits; if each did, this would take more than the test's time.
        for number in range(250):
            assert face.complete(f"question {number}") == f"echo: question {number}"
    assert ["no answer within 0.5 s" in str(warning.message) for warning in caught] == [True]
    redis.send(signal.SIGCONT)

    def is_kept() -> bool:
        before = seen(mock_server)
        face.complete("hi")
        return seen(mock_server) == before

    until(is_kept)


def test_a_redis_that_takes_nothing_more_is_still_read(make: Make, mock_server: MockServer, redis: RedisServer) -> None:
    cache = Cache(redis.url, memory_bytes=0)
    face = make(cache=cache)
    face.complete("hi")
    cache.flush()
    redis.say("CONFIG", "SET", "maxmemory", "1")
    redis.say("CONFIG", "SET", "maxmemory-policy", "noeviction")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            face.complete("something else")
            cache.flush()
        face.complete("hi")
    assert ["it answered OOM" in str(warning.message) for warning in caught] == [True]
    assert seen(mock_server) == 3
    assert cache.stats().dropped == 2


# ---- several processes ----

CROWD = """
    import asyncio, random, sys
    from millstream import AsyncClient, Cache
    place, base_url, single_flight, forever = sys.argv[1:]
    async def main():
        options = {"single_flight": True} if single_flight == "True" else {}
        cache = Cache(place, **options)
        client = AsyncClient(api_key="sk-test-0123456789", base_url=base_url, model="m", cache=cache)
        prompts = [f"question {n % 1000}" for n in range(2500)]
        random.shuffle(prompts)
        while True:
            assert await client.batch_complete(prompts, max_concurrent=32) == [f"echo: {p}" for p in prompts]
            stats = await cache.astats()
            print(stats.broken, stats.dropped, flush=True)
            if forever != "True":
                break
            await cache.aclear()
    asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "single_flight", "most"), [("disk", False, 2000), ("redis", False, 2000), ("redis", True, 1000)]
)
def test_four_processes_ask_each_question_once(
    tmp_path: Path, redis: RedisServer, kind: str, single_flight: bool, most: int
) -> None:
    """Those that several ask at the same moment are asked by each of them, unless one does for all."""
    place = redis.url if kind == "redis" else str(tmp_path / "c")
    with MockServer(latency=0.005) as server:
        crowd = [start(CROWD, place, server.base_url, str(single_flight), "False") for _ in range(4)]
        assert [ended(each) for each in crowd] == ["0 0\n"] * 4
        assert 1000 <= seen(server) <= most
        assert len({request.body for request in server.requests}) == 1000
    stats = Cache(place).stats()
    assert (stats.entries, stats.broken) == (1000, 0)


@pytest.mark.slow
def test_the_death_of_a_process_harms_no_other(redis: RedisServer) -> None:
    with MockServer(latency=0.005) as server:
        arguments = redis.url, server.base_url, "True"
        doomed = start(CROWD, *arguments, "True")
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == "0 0\n"
        crowd = [start(CROWD, *arguments, "False") for _ in range(3)]
        until(lambda: seen(server) > 1100)
        doomed.kill()
        assert [ended(each) for each in crowd] == ["0 0\n"] * 3
        doomed.communicate(timeout=60)
        before = seen(server)
        assert ended(start(CROWD, *arguments, "False")) == "0 0\n"
        # What it had asked and not written, or cleared.
        assert seen(server) - before <= 1000
        assert Cache(redis.url).stats().entries == 1000
        until(lambda: not [key for key in redis.keys() if key.endswith(":lock")])


def test_a_forked_child_has_a_connection_of_its_own(mock_server: MockServer, redis: RedisServer) -> None:
    script = f"""
        import os
        from millstream import Client
        client = Client(api_key={KEY!r}, base_url={mock_server.base_url!r}, model="m", cache={redis.url!r})
        prompts = [str(number) for number in range(50)]
        client.batch_complete(prompts)
        client._settings.cache.flush()
        child = os.fork()
        answers = client.batch_complete([*prompts, "another"])
        client._settings.cache.flush()
        assert answers == [f"echo: {{prompt}}" for prompt in [*prompts, "another"]], answers
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            print(client._settings.cache.stats().hits)
    """
    process = start(script.replace("import os\n", "import os, warnings; warnings.simplefilter('ignore')\n"))
    assert ended(process) == "50\n"
    # "another" was asked by one or by both.
    assert seen(mock_server) in (51, 52)


# ---- one asks for all ----


@pytest.fixture
def two_processes(redis: RedisServer, mock_server: MockServer) -> Callable[[], tuple[AsyncClient, AsyncClient]]:
    """Two caches know no more of each other than two processes do."""

    def made() -> tuple[AsyncClient, AsyncClient]:
        caches = (Cache(redis.url, single_flight=True) for _ in range(2))
        one, other = (
            AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m", max_retries=0, cache=cache)
            for cache in caches
        )
        return one, other

    return made


async def test_of_two_processes_one_asks(two_processes: Any, mock_server: MockServer, redis: RedisServer) -> None:
    mock_server.script(Answer(text="once", latency=0.3))
    one, other = two_processes()
    assert await asyncio.gather(*(client.complete("hi") for client in (one, other, one, other))) == ["once"] * 4
    assert seen(mock_server) == 1
    await until_async(lambda: not [key for key in redis.keys() if key.endswith(":lock")])


async def test_one_that_is_cancelled_lets_another_ask(two_processes: Any, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="never", latency=60), Answer(text="asked"))
    one, other = two_processes()
    first = asyncio.ensure_future(one.complete("hi"))
    await until_async(lambda: seen(mock_server) == 1)
    second = asyncio.ensure_future(other.complete("hi"))
    await asyncio.sleep(0.1)
    assert seen(mock_server) == 1
    first.cancel()
    assert await asyncio.wait_for(second, 4) == "asked"


async def test_one_that_fails_lets_another_ask(two_processes: Any, mock_server: MockServer) -> None:
    mock_server.script(Answer(status=400, latency=0.2), Answer(text="asked"))
    one, other = two_processes()
    first = asyncio.ensure_future(one.complete("hi"))
    await until_async(lambda: seen(mock_server) == 1)
    second = asyncio.ensure_future(other.complete("hi"))
    with pytest.raises(Exception, match="400"):
        await first
    assert await second == "asked"
    assert seen(mock_server) == 2


async def test_who_waits_for_another_waits_no_longer_than_it_would_itself(
    two_processes: Any, mock_server: MockServer
) -> None:
    mock_server.script(Answer(text="late", latency=20))
    one, other = two_processes()
    first = asyncio.ensure_future(one.complete("hi"))
    await until_async(lambda: seen(mock_server) == 1)
    with pytest.raises(Exception, match="asked the same"):
        await other.complete("hi", timeout=0.5)
    assert seen(mock_server) == 1
    first.cancel()


async def test_a_request_that_outlasts_the_lock_keeps_it(two_processes: Any, mock_server: MockServer) -> None:
    mock_server.script(Answer(text="once", latency=7))
    one, other = two_processes()
    assert await asyncio.gather(one.complete("hi"), other.complete("hi")) == ["once"] * 2
    assert seen(mock_server) == 1


async def test_the_death_of_the_one_that_asks_delays_the_others_for_some_seconds(
    two_processes: Any, mock_server: MockServer, redis: RedisServer
) -> None:
    mock_server.script(Answer(text="never", latency=60), Answer(text="asked"))
    script = f"""
        from millstream import Cache, Client
        cache = Cache({redis.url!r}, single_flight=True)
        Client(api_key={KEY!r}, base_url={mock_server.base_url!r}, model="m", cache=cache).complete("hi")
    """
    doomed = start(script)
    await until_async(lambda: seen(mock_server) == 1)
    one, _ = two_processes()
    asking = asyncio.ensure_future(one.complete("hi"))
    await asyncio.sleep(0.1)
    doomed.kill()
    doomed.communicate(timeout=60)
    assert await asyncio.wait_for(asking, 10) == "asked"


async def test_without_the_redis_nobody_waits_for_anybody(
    two_processes: Any, mock_server: MockServer, redis: RedisServer
) -> None:
    mock_server.script(Answer(text="never", latency=60), Answer(text="asked"))
    one, other = two_processes()
    first = asyncio.ensure_future(one.complete("hi"))
    await until_async(lambda: seen(mock_server) == 1)
    second = asyncio.ensure_future(other.complete("hi"))
    await asyncio.sleep(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        redis.kill()
        assert await asyncio.wait_for(second, 10) == "asked"
        first.cancel()


# ---- who may, and what is shown ----


def shown_by(error: BaseException) -> str:
    """The traceback with the variables of the package's own frames, as error reporters send it."""
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in trace.stack if "millstream" in frame.filename and "tests" not in frame.filename]
    assert ours
    return "".join([*traceback.StackSummary.from_list(ours).format(), *trace.format_exception_only()])


def everything_said(cache: Cache, face: Face) -> str:
    """What is shown of a cache and its client, wherever a password might be."""
    said = [repr(cache), str(cache), repr(cache._native), repr(face.client), repr(face.client._settings)]
    said += [repr(getattr(face.client, name, None)) for name in dir(face.client)]
    try:
        pickle.dumps(cache)
    except TypeError as error:
        said.append(shown_by(error))
    return "\n".join(said)


def test_a_password_opens_it_and_is_shown_nowhere(
    make: Make, mock_server: MockServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RedisServer(tmp_path, password=CANARY) as redis:
        place = f"127.0.0.1:{redis.port}/0"
        redis.say("ACL", "SETUSER", "user-canary", "on", f">{CANARY}", "~millstream:*", "+@all")
        for login in (f":{QUOTED}", f"user-canary:{QUOTED}"):
            cache = Cache(f"redis://{login}@{place}", memory_bytes=0)
            face = make(cache=cache)
            face.complete("hi")
            cache.flush()
            face.complete("hi")
            assert repr(cache) == f"Cache('redis://***@{place}')"
            said = everything_said(cache, face)
            assert "canary" not in said
            assert KEY not in said
        assert seen(mock_server) == 1
        assert KEY.encode() not in redis.say("GET", *redis.keys())  # type: ignore[operator]

        for login in (":canary-wrong", "user-canary:canary-wrong", "canary-nobody:canary-wrong", ""):
            cache = Cache(f"redis://{login}@{place}".replace("//@", "//"))
            face = make(cache=cache)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                face.complete("hi")
                face.complete("something else")
                with pytest.raises(APIConnectionError) as error:
                    cache.clear()
            (told,) = {str(warning.message) for warning in caught}
            assert "cannot be used now" in told
            said = told + everything_said(cache, face)
            said += shown_by(error.value)
            assert "canary" not in said
    assert "canary" not in "".join(capfd.readouterr())


def test_a_server_that_is_no_redis_and_repeats_what_it_hears_tells_no_password(make: Make) -> None:
    """As Redis itself does with a command that it does not know."""

    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                self.wfile.write(b"-ERR unknown command, with args beginning with: " + line)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        cache = Cache(f"redis://canary:canary@127.0.0.1:{server.server_address[1]}")
        face = make(cache=cache)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            face.complete("hi")
            face.complete("hi there")
        (told,) = {str(warning.message) for warning in caught}
        assert "cannot be used now" in told
        assert "canary" not in told
        server.shutdown()
        thread.join()


TLS = """
import sys
from millstream import Cache, Client
cache = Cache(sys.argv[1], memory_bytes=0)
client = Client(api_key="sk-test-0123456789", base_url=sys.argv[2], model="m", cache=cache)
for _ in range(2):
    print(client.chat.completions.create(messages=[{"role": "user", "content": "hi"}]).cached)
    cache.flush()
"""


def test_over_tls_it_is_whom_it_says_it_is(mock_server: MockServer, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    bundle, chain, key = (tmp_path / name for name in ("ca.pem", "chain.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(bundle))
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    options = ["--tls-port", str(port), "--tls-cert-file", str(chain), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(bundle), "--tls-auth-clients", "no"]
    with RedisServer(tmp_path, *options, password=CANARY) as redis:
        context = ssl.create_default_context(cafile=str(bundle))
        assert context.verify_mode is ssl.CERT_REQUIRED
        for host in ("127.0.0.1", "localhost"):
            url = f"rediss://:{QUOTED}@{host}:{port}/0"
            assert ended(start(TLS, url, mock_server.base_url, SSL_CERT_FILE=str(bundle))).split()[-1] == "True"
        assert seen(mock_server) == 1
        assert len(redis.keys()) == 1

        stranger = start(TLS, f"rediss://:{QUOTED}@127.0.0.1:{port}/0", mock_server.base_url)
        out, err = stranger.communicate(timeout=60)
        assert (stranger.returncode, out.split()) == (0, ["False", "False"])
        assert "certificate" in err
        assert "canary" not in out + err
        assert seen(mock_server) >= 2


@pytest.mark.parametrize(
    ("where", "options", "error", "named"),
    [
        ("redis://", {}, ConfigurationError, "names no host"),
        (f"redis://:{QUOTED}@h/canary", {}, ConfigurationError, "database"),
        (f"redis://:{QUOTED}@h?canary=1", {}, ConfigurationError, "options"),
        (f"http://:{QUOTED}@h", {}, ConfigurationError, "not http://"),
        (f"redis://:{QUOTED}@h", {"namespace": ""}, ConfigurationError, "namespace"),
        (f"redis://:{QUOTED}@h", {"namespace": 1}, TypeError, "namespace"),
        (f"redis://:{QUOTED}@h", {"single_flight": 1}, TypeError, "single_flight"),
        (f"redis://:{QUOTED}@h", {"max_bytes": 1}, ConfigurationError, "maxmemory"),
        (f"redis://:{QUOTED}@h", {"ttl": -1}, ConfigurationError, "ttl"),
        (f"redis://:{QUOTED}@h", {"tll": 1}, TypeError, "ttl"),
        ("memory", {"single_flight": True}, ConfigurationError, "single_flight"),
        ("./c", {"namespace": "n"}, ConfigurationError, "namespace"),
    ],
)
def test_what_is_refused_is_named_and_shows_no_password(
    where: str, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    makes: list[Callable[[], Any]] = [lambda: Cache(where, **options), lambda: Cache(where=where, **options)]
    if not options:
        makes.append(lambda: Client(api_key=KEY, model="m", cache=where))
        makes.append(lambda: Client(api_key=KEY, model="m").with_options(cache=where))
    for make_it in makes:
        with pytest.raises(error, match=named) as caught:
            make_it()
        assert "canary" not in shown_by(caught.value)


def test_another_argument_that_is_wrong_does_not_show_the_password() -> None:
    for options in ({"timeout": -1}, {"model": 7}, {"no_such": 1}):
        with pytest.raises((ConfigurationError, TypeError)) as caught:
            Client(**{"api_key": KEY, "model": "m", "cache": f"redis://:{QUOTED}@h", **options})
        assert "canary" not in shown_by(caught.value)
