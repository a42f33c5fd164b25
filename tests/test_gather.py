"""`client.gather`: calls of any kind under names, at once; after an error nothing is left under way."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from helpers import KEY, until, until_async
from millstream import AsyncClient, Client, MillstreamError, NotFoundError, RateLimiter
from millstream.testing import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers import Face
    from millstream.testing import MockServer

    Make = Callable[..., Face]

HANG = "hang"


def hangs_for_some(server: MockServer) -> None:
    """The server never answers a prompt of `HANG`, refuses one of "bad" and echoes any other."""
    server.when(HANG, Answer(fault="hang_before", times=0))
    server.when("bad", Answer(status=404, body={}, times=0))


def gather(face: Face, calls: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The same calls for both clients: awaited ones are made here, the others are not."""
    if isinstance(face.client, Client):
        return face.run(face.client.gather(calls, **options))

    async def main() -> dict[str, Any]:
        return await face.client.gather(
            {name: call() if callable(call) else call for name, call in calls.items()}, **options
        )

    return face._runner.run(main())


def calls_of_every_kind(client: Any) -> dict[str, Callable[[], Any]]:
    is_awaited = isinstance(client, AsyncClient)
    return {
        "text": lambda: client.complete("a"),
        "texts": lambda: client.batch_complete(["b", "c"]),
        "completion": lambda: client.chat.completions.create(messages=[{"role": "user", "content": "d"}]),
        "models": lambda: client.models.list(),
        "stream": lambda: client.stream_complete("e f").get_final(),
        "several": lambda: client.gather({1: client.complete("g") if is_awaited else lambda: client.complete("g")}),
    }


def test_calls_of_any_kind_come_back_by_their_names_in_order(face: Face) -> None:
    calls = calls_of_every_kind(face.client)
    results = gather(face, calls)

    assert list(results) == list(calls)
    assert (results["text"], results["texts"]) == ("echo: a", ["echo: b", "echo: c"])
    assert results["completion"].text == "echo: d"
    assert results["stream"].text == "echo: e f"
    assert results["several"] == {1: "echo: g"}
    assert [model.id for model in results["models"].data]


def test_they_run_at_once(face: Face, mock_server: MockServer) -> None:
    mock_server.script(Answer(latency=0.2, times=0))
    names = "abcdef"
    gather(face, {name: lambda name=name: face.client.complete(name) for name in names})
    assert mock_server.stats.max_in_flight == len(names)


def test_nothing_to_call_gives_nothing(face: Face) -> None:
    assert gather(face, {}) == {}


def test_the_first_error_is_raised_as_it_is_and_aborts_the_others(make: Make, mock_server: MockServer) -> None:
    hangs_for_some(mock_server)
    face = make(max_retries=0, timeout=60)
    client = face.client
    calls = {
        "one": lambda: client.complete(HANG),
        "many": lambda: client.batch_complete([HANG, HANG]),
        "stream": lambda: client.stream_complete(HANG).get_final(),
        "bad": lambda: asked_last(client, mock_server),
    }
    with pytest.raises(NotFoundError):
        gather(face, calls)

    until(lambda: mock_server.stats.in_flight == 0)
    assert mock_server.stats.requests == 5


def asked_last(client: Any, server: MockServer) -> Any:
    if isinstance(client, Client):
        until(lambda: server.stats.in_flight == 4)
        return client.complete("bad")

    async def ask() -> Any:
        await until_async(lambda: server.stats.in_flight == 4)
        return await client.complete("bad")

    return ask()


def test_with_return_exceptions_each_error_stands_in_its_place(make: Make, mock_server: MockServer) -> None:
    hangs_for_some(mock_server)
    face = make(max_retries=0)
    calls = {"bad": lambda: face.client.complete("bad"), "good": lambda: face.client.complete("good")}
    results = gather(face, calls, return_exceptions=True)

    assert isinstance(results["bad"], NotFoundError)
    assert results["good"] == "echo: good"


def test_what_waits_for_a_rate_limiter_is_aborted_too(make: Make, mock_server: MockServer) -> None:
    hangs_for_some(mock_server)
    face = make(max_retries=0, timeout=60)
    limiter = RateLimiter(requests_per_minute=1)
    with limiter:
        pass
    waits = limiter.acquire_blocking if isinstance(face.client, Client) else limiter.acquire
    with pytest.raises(NotFoundError):
        gather(face, {"waits": waits, "bad": lambda: face.client.complete("bad")})


def test_an_error_is_held_by_nobody_else(mock_server: MockServer) -> None:
    """A cycle of an error and its frames would keep what these hold until the next collection."""
    hangs_for_some(mock_server)
    options: dict[str, Any] = {"api_key": KEY, "base_url": mock_server.base_url, "model": "m", "max_retries": 0}

    def blocking(client: Client) -> weakref.ref[MillstreamError]:
        try:
            client.gather({"bad": lambda: client.complete("bad"), "a": lambda: client.complete("a")})
        except NotFoundError as error:
            return weakref.ref(error)
        raise AssertionError

    async def awaited() -> weakref.ref[MillstreamError]:
        async with AsyncClient(**options) as client:
            try:
                await client.gather({"bad": client.complete("bad"), "a": client.complete("a")})
            except NotFoundError as error:
                return weakref.ref(error)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        with Client(**options) as client:
            assert blocking(client)() is None
        assert asyncio.run(awaited())() is None
    finally:
        gc.enable()


def test_what_is_no_call_is_refused_by_its_name_and_nothing_is_sent(face: Face, mock_server: MockServer) -> None:
    with pytest.raises(TypeError, match=r"mapping of names to calls, not list"):
        face.run(face.client.gather([]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"gather\(\): 'b' must be .* not str"):
        gather(face, {"a": lambda: face.client.complete("a"), "b": "text"})
    assert mock_server.requests == []


async def test_a_stream_or_a_function_in_place_of_an_awaitable_is_told_what_to_do(mock_server: MockServer) -> None:
    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
        with pytest.raises(TypeError, match=r"'s' .* not AsyncStream; give its get_final\(\)"):
            await client.gather({"s": client.stream_complete("a")})  # type: ignore[dict-item]
        with pytest.raises(TypeError, match=r"'f' .* not function; call it"):
            await client.gather({"f": lambda: client.complete("a")})  # type: ignore[dict-item]


# ---- awaited ----


async def test_a_cancelled_gather_leaves_nothing_under_way(mock_server: MockServer) -> None:
    hangs_for_some(mock_server)
    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
        task = asyncio.create_task(
            client.gather({name: client.complete(HANG) for name in "abc"}, return_exceptions=True)
        )
        await until_async(lambda: mock_server.stats.in_flight == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_async(lambda: mock_server.stats.in_flight == 0)


async def test_any_awaitable_is_a_call(mock_server: MockServer) -> None:
    class Seven:
        def __await__(self) -> Any:
            return asyncio.sleep(0, 7).__await__()

    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m") as client:
        task = asyncio.create_task(client.complete("a"))
        results = await client.gather({"task": task, "seven": Seven(), "sleep": asyncio.sleep(0, "slept")})
    assert results == {"task": "echo: a", "seven": 7, "sleep": "slept"}


async def test_an_error_goes_before_a_call_that_somebody_else_cancelled(mock_server: MockServer) -> None:
    hangs_for_some(mock_server)
    async with AsyncClient(api_key=KEY, base_url=mock_server.base_url, model="m", max_retries=0) as client:
        cancelled = asyncio.create_task(client.complete(HANG))
        bad = client.complete("bad")
        gathering = asyncio.create_task(client.gather({"cancelled": cancelled, "bad": bad}))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(NotFoundError):
            await gathering

        cancelled = asyncio.create_task(client.complete(HANG))
        cancelled.cancel()
        results = await client.gather({"cancelled": cancelled, "a": client.complete("a")}, return_exceptions=True)
    assert isinstance(results["cancelled"], asyncio.CancelledError)
    assert results["a"] == "echo: a"


# ---- blocking ----


@pytest.fixture
def client(mock_server: MockServer) -> Any:
    with Client(api_key=KEY, base_url=mock_server.base_url, model="m", max_retries=0, timeout=60) as client:
        yield client


def test_an_abort_reaches_calls_of_a_gather_in_a_gather(client: Client, mock_server: MockServer) -> None:
    hangs_for_some(mock_server)
    with pytest.raises(NotFoundError):
        client.gather(
            {
                "inner": lambda: client.gather({name: lambda: client.complete(HANG) for name in "abcd"}),
                "bad": lambda: asked_last(client, mock_server),
            }
        )
    until(lambda: mock_server.stats.in_flight == 0)


def test_a_call_after_the_abort_is_not_begun(client: Client, mock_server: MockServer) -> None:
    hangs_for_some(mock_server)
    ended: list[type[BaseException]] = []

    def again_and_again() -> None:
        for _ in range(2):
            try:
                client.complete(HANG)
            except BaseException as error:
                ended.append(type(error))

    def bad() -> str:
        until(lambda: mock_server.stats.in_flight == 1)
        return client.complete("bad")

    with pytest.raises(NotFoundError):
        client.gather({"stubborn": again_and_again, "bad": bad})
    assert ended == [asyncio.CancelledError] * 2
    assert mock_server.stats.requests == 2


def test_context_variables_and_any_function_reach_the_threads(client: Client) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    threads = client.gather({"thread": threading.current_thread, "variable": variable.get, "len": [].__len__})
    assert threads["thread"] is not threading.main_thread()
    assert (threads["variable"], threads["len"]) == ("set", 0)


def test_a_call_may_run_a_loop_of_its_own(client: Client) -> None:
    async def blocks_in_a_loop() -> str:
        return client.complete("a")

    assert client.gather({"a": lambda: asyncio.run(blocks_in_a_loop())}) == {"a": "echo: a"}


def test_an_open_stream_may_be_read_afterwards(client: Client) -> None:
    messages = [{"role": "user", "content": "a b"}]
    streams = client.gather({"a": lambda: client.chat.completions.create(messages=messages, stream=True)})
    assert streams["a"].get_final().text == "echo: a b"


def test_ctrl_c_aborts_them_all(client: Client, mock_server: MockServer) -> None:
    hangs_for_some(mock_server)
    # Whoever starts the tests in the background may have them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        until(lambda: mock_server.stats.in_flight == 2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            client.gather({"a": lambda: client.complete(HANG), "b": lambda: client.complete(HANG), "ctrl-c": interrupt})
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: mock_server.stats.in_flight == 0)
