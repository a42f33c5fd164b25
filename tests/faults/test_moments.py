"""Every way for a call to end, in every wait that it can be in: what it held is given back, and the client works on."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from child import run
from helpers import KEY, until, until_async
from millstream import (
    APIStatusError,
    AsyncClient,
    DeadlineExceeded,
    MillstreamError,
    QueueTimeoutError,
    RateLimiter,
    RetryPolicy,
)
from millstream.testing import Answer, MockServer, Streaming

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

SHORT_S = 0.4
BACKOFF_S = 60.0
LONG_S = 600.0


@dataclass
class Moment:
    """A client in a wait. Made by one of `WAITS`."""

    server: MockServer
    client: AsyncClient
    call: Callable[[], Coroutine[Any, Any, Any]]
    is_there: Callable[[], bool]
    at_the_deadline: type[MillstreamError] = DeadlineExceeded
    sent: int = 1
    """Requests that the server has seen of it."""
    free: Callable[[], None] = lambda: None
    """Ends what made it wait, for the calls after it."""
    others: list[asyncio.Task[Any]] = field(default_factory=list)
    """Calls beside it."""

    def begin_others(self) -> None:
        """Whatever must run before it."""


def client_of(server: MockServer, **options: Any) -> AsyncClient:
    defaults = {"api_key": KEY, "base_url": server.base_url, "model": "m", "timeout": LONG_S, "connect_timeout": LONG_S}
    return AsyncClient(**{**defaults, **options})


def short(is_short: bool) -> dict[str, float]:
    """The time of a call that its deadline ends, wherever it waits."""
    return {"timeout": SHORT_S, "queue_timeout": SHORT_S} if is_short else {}


def connecting(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    port = listener.getsockname()[1]
    for _ in range(4):
        filler = stack.enter_context(closing(socket.socket()))
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
    client = client_of(server)
    there = client.with_options(base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
    return Moment(
        server, client, lambda: there.complete("wait", **short(is_short)), lambda: there.stats().in_flight == 1, sent=0
    )


def in_the_window(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    server.when("hold", Answer(fault="hang_before", times=0))
    client = client_of(server, max_concurrency=1)
    moment = Moment(
        server,
        client,
        lambda: client.complete("wait", **short(is_short)),
        lambda: client.stats().concurrency.waiting == 1,
        at_the_deadline=QueueTimeoutError,
        sent=0,
    )

    def begin_others() -> None:
        moment.others = [asyncio.ensure_future(client.complete("hold"))]

    def free() -> None:
        for other in moment.others:
            other.cancel()

    moment.begin_others, moment.free = begin_others, free  # type: ignore[method-assign]
    return moment


def at_the_rate(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    limiter = RateLimiter(requests_per_minute=1)
    assert limiter.try_acquire()
    client = client_of(server, rate_limiter=limiter)
    return Moment(
        server,
        client,
        lambda: client.complete("wait", **short(is_short)),
        lambda: limiter.waiting == 1,
        at_the_deadline=QueueTimeoutError,
        sent=0,
        free=lambda: limiter.set_limits(requests_per_minute=60_000),
    )


def before_a_retry(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    server.when("wait", Answer(status=500, times=0))
    client = client_of(
        server, retry=RetryPolicy(max_retries=3, base_delay=BACKOFF_S, max_delay=BACKOFF_S, jitter="none")
    )
    return Moment(
        server,
        client,
        lambda: client.complete("wait", **short(is_short)),
        lambda: client.stats().retries == 1,
        # A wait that would pass the deadline is not begun.
        at_the_deadline=APIStatusError,
    )


def as_long_as_the_server_asked(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    server.when("wait", Answer(status=429, headers={"retry-after": "60"}, times=0))
    client = client_of(server)
    return Moment(
        server,
        client,
        lambda: client.complete("wait", model="other", **short(is_short)),
        lambda: client.stats().retries == 1,
        at_the_deadline=APIStatusError,
    )


def at_a_closed_gate(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    """The server's wait was told to another call of the same model."""
    server.when("first", Answer(status=429, headers={"retry-after": "60"}, times=0))
    client = client_of(server, max_retries=0)

    async def after_another() -> str:
        with pytest.raises(APIStatusError):
            await client.complete("first", model="other")
        return await client.complete("wait", model="other", **short(is_short))

    return Moment(
        server,
        client,
        after_another,
        lambda: client.stats().attempts == 1 and client.stats().in_flight == 0 and client.stats().queued == 1,
        at_the_deadline=QueueTimeoutError,
    )


def for_the_head(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    server.when("wait", Answer(fault="hang_before", times=0))
    client = client_of(server)
    return Moment(
        server, client, lambda: client.complete("wait", **short(is_short)), lambda: server.stats.in_flight == 1
    )


def in_the_body(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    server.when("wait", Answer(fault="hang_in_body", times=0))
    client = client_of(server)
    return Moment(
        server, client, lambda: client.complete("wait", **short(is_short)), lambda: server.stats.in_flight == 1
    )


def in_a_stream(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    server.when("wait", Answer(text="one two three four", stream=Streaming(fault="stall", after=3), times=0))
    client = client_of(server)
    seen: list[str] = []

    async def read() -> None:
        time = {"timeout": SHORT_S} if is_short else {}
        async for piece in client.stream_complete("wait", **time):
            seen.append(piece)

    return Moment(server, client, read, lambda: len(seen) == 2)


def in_a_batch(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    server.when("wait", Answer(fault="hang_before", times=0))
    client = client_of(server)
    time = {"timeout": SHORT_S} if is_short else {}
    return Moment(
        server,
        client,
        lambda: client.batch_complete(["wait", "go"], max_concurrent=2, **time),
        lambda: server.stats.answered == 1 and server.stats.in_flight == 1,
        sent=2,
    )


def behind_the_same_question(server: MockServer, stack: ExitStack, is_short: bool) -> Moment:
    """Another call has asked the server, and this one waits for its answer."""
    server.when("wait", Answer(fault="hang_before", times=0))
    client = client_of(server, cache="memory")
    moment = Moment(
        server,
        client,
        lambda: client.complete("wait", temperature=0, **short(is_short)),
        lambda: client.stats().requests == 2 and server.stats.in_flight == 1,
        # That of the other.
        sent=1,
    )

    def begin_others() -> None:
        moment.others = [asyncio.ensure_future(client.complete("wait", temperature=0))]

    def free() -> None:
        for other in moment.others:
            other.cancel()

    moment.begin_others, moment.free = begin_others, free  # type: ignore[method-assign]
    return moment


WAITS: dict[str, Callable[[MockServer, ExitStack, bool], Moment]] = {
    wait.__name__: wait
    for wait in (
        connecting,
        in_the_window,
        at_the_rate,
        before_a_retry,
        as_long_as_the_server_asked,
        at_a_closed_gate,
        for_the_head,
        in_the_body,
        in_a_stream,
        in_a_batch,
        behind_the_same_question,
    )
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def begun(moment: Moment) -> asyncio.Task[Any]:
    """The call, in its wait."""
    moment.begin_others()
    if moment.others:
        await until_async(lambda: moment.server.stats.in_flight == 1)
    task = asyncio.create_task(moment.call())
    await until_async(lambda: moment.is_there() or task.done())
    assert not task.done() or task.exception(), "it was to wait"
    return task


async def cancelled(moment: Moment) -> None:
    task = await begun(moment)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def timed_out(moment: Moment) -> None:
    """By asyncio's own clock."""
    moment.begin_others()
    if moment.others:
        await until_async(lambda: moment.server.stats.in_flight == 1)

    async def call() -> None:
        async with asyncio.timeout(LONG_S) as timeout:

            async def end_it() -> None:
                await until_async(moment.is_there)
                timeout.reschedule(asyncio.get_running_loop().time())

            ending = asyncio.create_task(end_it())
            try:
                await moment.call()
            finally:
                await ending

    with pytest.raises(TimeoutError):
        await call()


async def failed_beside(moment: Moment) -> None:
    """Another task of its group fails."""

    async def fail() -> None:
        await until_async(moment.is_there)
        raise LookupError

    moment.begin_others()
    if moment.others:
        await until_async(lambda: moment.server.stats.in_flight == 1)

    async def group_them() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(moment.call())
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await group_them()
    assert [type(error) for error in caught.value.exceptions] == [LookupError]


ENDS = {end.__name__: end for end in (cancelled, timed_out, failed_beside)}


def is_idle(client: AsyncClient) -> bool:
    stats = client.stats()
    return stats.in_flight == stats.queued == stats.concurrency.in_flight == 0


async def all_is_given_back(moment: Moment, before: int) -> None:
    server, client = moment.server, moment.client
    moment.free()
    for other in moment.others:
        with pytest.raises(asyncio.CancelledError):
            await other
    await until_async(lambda: server.stats.in_flight == 0)
    await until_async(lambda: is_idle(client))
    assert server.stats.requests - before == moment.sent + (1 if moment.others and not moment.sent else 0)
    assert await client.complete("after") == "echo: after"
    await client.close()
    await until_async(lambda: server.stats.open_connections == 0)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("wait", WAITS)
def test_a_call_that_is_left_gives_back_what_it_held(
    mock_server: MockServer, stack: ExitStack, wait: str, end: str
) -> None:
    async def main() -> None:
        moment = WAITS[wait](mock_server, stack, False)
        await ENDS[end](moment)
        await all_is_given_back(moment, 0)

    asyncio.run(main())


@pytest.mark.parametrize("wait", WAITS)
def test_a_deadline_ends_a_call_wherever_it_waits(mock_server: MockServer, stack: ExitStack, wait: str) -> None:
    async def main() -> None:
        moment = WAITS[wait](mock_server, stack, True)
        moment.begin_others()
        if moment.others:
            await until_async(lambda: mock_server.stats.in_flight == 1)
        began = asyncio.get_running_loop().time()
        with pytest.raises(MillstreamError) as caught:
            await moment.call()
        assert asyncio.get_running_loop().time() - began < 10
        assert isinstance(caught.value, moment.at_the_deadline), repr(caught.value)
        await all_is_given_back(moment, 0)

    asyncio.run(main())


@pytest.mark.parametrize("wait", WAITS)
def test_a_loop_that_is_closed_and_forgotten_under_a_call_leaves_nothing_of_it(
    mock_server: MockServer, stack: ExitStack, wait: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    moment = WAITS[wait](mock_server, stack, False)
    task = loop.run_until_complete(begun(moment))
    loop.close()
    # What asyncio says of tasks that it loses is its own.
    with caplog.at_level("CRITICAL", logger="asyncio"):
        del task, loop
        moment.others.clear()
        gc.collect()
        until(lambda: mock_server.stats.in_flight == 0)
        until(lambda: is_idle(moment.client))
    moment.free()
    assert asyncio.run(moment.client.complete("after")) == "echo: after"


FORK = """
import asyncio, os, signal, sys, time
from millstream import AsyncClient, Client, RateLimiter, RetryPolicy

base_url, wait = sys.argv[1:]
options = dict(api_key="test", base_url=base_url, model="m", timeout=60)
if wait == "at_the_rate":
    options["rate_limiter"] = RateLimiter(requests_per_minute=60)
    assert options["rate_limiter"].try_acquire(60)
if wait == "before_a_retry":
    options["retry"] = RetryPolicy(max_retries=3, base_delay=1, max_delay=1, jitter="none")
if wait == "in_the_window":
    options["max_concurrency"] = 1
if wait == "behind_the_same_question":
    options["cache"] = "memory"
client, blocking = AsyncClient(**options), Client(**options)

def waits():
    stats = client.stats()
    return {
        "at_the_rate": lambda: stats.queued == 1,
        "before_a_retry": lambda: stats.retries == 1,
        "in_the_window": lambda: stats.concurrency.waiting == 1,
        "for_the_head": lambda: stats.in_flight == 1,
        "in_a_stream": lambda: len(seen) == 2,
        "behind_the_same_question": lambda: stats.requests == 2,
    }[wait]()

seen = []

async def call():
    if wait == "in_a_stream":
        async for piece in client.stream_complete("wait"):
            seen.append(piece)
        return "".join(seen)
    return await client.complete("wait", temperature=0)

async def main():
    tasks = [asyncio.create_task(call())]
    if wait in ("in_the_window", "behind_the_same_question"):
        tasks.append(asyncio.create_task(call()))
    while not waits():
        await asyncio.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            asyncio._set_running_loop(None)
            assert asyncio.run(client.complete("child")) == "echo: child"
            assert blocking.complete("child") == "echo: child"
        except BaseException as error:
            print("child", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    answers = await asyncio.gather(*tasks)
    code = os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1])
    print(code, sorted(set(answers)), flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "wait",
    ["at_the_rate", "before_a_retry", "in_the_window", "for_the_head", "in_a_stream", "behind_the_same_question"],
)
def test_a_fork_in_any_wait_serves_both(mock_server: MockServer, wait: str) -> None:
    if wait == "before_a_retry":
        mock_server.when("wait", Answer(status=500), Answer(text="late"))
    elif wait == "in_a_stream":
        mock_server.when("wait", Answer(text="one two three four", stream=Streaming(gap=[0.0, 0.0, 0.7, 0.0])))
    else:
        mock_server.when("wait", Answer(text="late", latency=0.7, times=0))
    code, output, errors = run(FORK, mock_server.base_url, wait, patience=60)
    assert (code, errors) == (0, "")
    assert output == ("0 ['one two three four']" if wait == "in_a_stream" else "0 ['late']")
    assert mock_server.stats.aborted == 0


def test_there_are_at_least_forty_of_these() -> None:
    assert len(WAITS) * (len(ENDS) + 2) + 6 >= 40
