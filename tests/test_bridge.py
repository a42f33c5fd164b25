"""From the engine's thread to an event loop and back: any loop, any number of them, and every way to end early."""

from __future__ import annotations

import asyncio
import gc
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import uvloop
from child import Child, eventually, run, until
from millstream import AsyncClient, BadRequestError, Client, RateLimiter
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    T = TypeVar("T")
    Run = Callable[[Coroutine[Any, Any, T]], T]

pytestmark = pytest.mark.timeout(60)

counts_in_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts in Linux's /proc")

SILENT = (0, "", "")
STORM = 2000
STORM_S = 1.0
"""Seconds in which the server sees 2,000 cancelled requests go."""


class LoopWithoutReaders(asyncio.SelectorEventLoop):
    """Cannot watch sockets for others, as Windows' Proactor loop."""

    def add_reader(self, fd: object, callback: Callable[..., Any], *args: Any) -> None:
        raise NotImplementedError


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop, "no readers": LoopWithoutReaders}


@pytest.fixture(params=LOOPS)
def run_loop(request: pytest.FixtureRequest) -> Run[Any]:
    """`asyncio.run` with each kind of event loop."""

    def run_with(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(main)

    return run_with


@pytest.fixture
def slow_server() -> Iterator[MockServer]:
    with MockServer(latency=30.0) as server:
        yield server


def client_for(server: MockServer, **options: Any) -> AsyncClient:
    return AsyncClient(**({"api_key": "test", "base_url": server.base_url, "model": "any", "timeout": 60} | options))


def blocking_for(server: MockServer, **options: Any) -> Client:
    return Client(**({"api_key": "test", "base_url": server.base_url, "model": "any", "timeout": 60} | options))


def all_left(server: MockServer) -> bool:
    return server.stats.in_flight == 0 and server.stats.open_connections == 0


# Results


def test_every_call_gets_its_answer(mock_server: MockServer, run_loop: Run[None]) -> None:
    async def main() -> None:
        async with client_for(mock_server) as client:
            assert await client.complete("one") == "echo: one"
            assert await client.batch_complete(["a", "b"]) == ["echo: a", "echo: b"]
            created = await client.chat.completions.create(messages=[{"role": "user", "content": "two"}])
            assert created.choices[0].message.content == "echo: two"
            assert [model.id for model in await client.models.list()] == ["mock-model"]
            reservation = await RateLimiter(requests_per_minute=1).acquire()
            assert reservation.requests == 1

    run_loop(main())
    assert mock_server.stats.answered == 5


def test_gathered_answers_belong_to_their_prompts(mock_server: MockServer, run_loop: Run[None]) -> None:
    async def main() -> None:
        client = client_for(mock_server)
        prompts = [f"prompt {i}" for i in range(3000)]  # more than one turn of the loop hands over
        assert await asyncio.gather(*map(client.complete, prompts)) == [f"echo: {prompt}" for prompt in prompts]

    run_loop(main())
    assert mock_server.stats.answered == 3000


def test_calls_are_coroutines_for_every_tool_of_asyncio(mock_server: MockServer, run_loop: Run[None]) -> None:
    async def main() -> None:
        client = client_for(mock_server)
        assert asyncio.iscoroutinefunction(client.complete)
        task = asyncio.create_task(client.complete("task"), name="named")
        assert await task == "echo: task"
        assert await asyncio.wait_for(client.complete("wait_for"), 30) == "echo: wait_for"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.complete(str(i))) for i in range(10)]
        assert [task.result() for task in tasks] == [f"echo: {i}" for i in range(10)]
        done, pending = await asyncio.wait([asyncio.create_task(client.complete("wait"))])
        assert (len(done), len(pending)) == (1, 0)
        assert [await each for each in asyncio.as_completed([client.complete("completed")])] == ["echo: completed"]
        assert await asyncio.shield(client.complete("shield")) == "echo: shield"

    run_loop(main())
    assert mock_server.stats.answered == 15


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in CPython 3.12")
def test_eager_tasks_get_their_answers(mock_server: MockServer) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        client = client_for(mock_server)
        assert await asyncio.gather(*map(client.complete, "abc")) == ["echo: a", "echo: b", "echo: c"]

    asyncio.run(main())


def test_a_loop_in_debug_mode_has_nothing_to_say(mock_server: MockServer, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        client = client_for(mock_server)
        asyncio.get_running_loop().slow_callback_duration = 60
        await asyncio.gather(*map(client.complete, map(str, range(100))))

    asyncio.run(main(), debug=True)
    assert [record.message for record in caplog.records if "Using selector" not in record.message] == []


def test_a_task_that_nobody_holds_is_not_collected_before_its_answer(mock_server: MockServer) -> None:
    mock_server.script(Answer(text="late", latency=0.3))

    async def main() -> None:
        client, answers = client_for(mock_server), []

        async def ask() -> None:
            answers.append(await client.complete("x"))

        asyncio.create_task(ask())  # noqa: RUF006
        await eventually(lambda: mock_server.stats.in_flight == 1)
        gc.collect()
        await eventually(lambda: answers == ["late"])

    asyncio.run(main())


def test_an_error_leaves_no_reference_cycle(mock_server: MockServer, run_loop: Run[None]) -> None:
    mock_server.script(Answer(status=400, times=0))

    async def main() -> None:
        client = client_for(mock_server)
        gc.disable()
        try:
            try:
                await client.complete("x")
            except BadRequestError as caught:
                error = weakref.ref(caught)
            await asyncio.sleep(0)  # the turn of the loop that brought it holds it
            assert error() is None

            outcomes = await client.batch_complete(["x"], return_exceptions=True)
            assert isinstance(outcomes[0], BadRequestError)
            error = weakref.ref(outcomes[0])
            del outcomes
            assert error() is None
        finally:
            gc.enable()

    run_loop(main())


# Every way to end early


async def in_flight(server: MockServer, number: int) -> None:
    await eventually(lambda: server.stats.in_flight == number)


async def gone(server: MockServer, number: int) -> None:
    """All requests were aborted by the client, and their connections closed."""
    await eventually(lambda: all_left(server) and server.stats.aborted == number)


def test_a_cancelled_task_closes_its_connection(slow_server: MockServer, run_loop: Run[None]) -> None:
    async def main() -> None:
        client = client_for(slow_server)
        task = asyncio.create_task(client.complete("x"))
        await in_flight(slow_server, 1)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
        await gone(slow_server, 1)
        assert client.stats().in_flight == 0

    run_loop(main())


def test_wait_for_that_times_out_closes_the_connection(slow_server: MockServer, run_loop: Run[None]) -> None:
    async def main() -> None:
        client = client_for(slow_server)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.complete("x"), 1.0)
        await gone(slow_server, 1)

    run_loop(main())
    assert slow_server.stats.requests == 1


def test_asyncio_timeout_closes_the_connections_of_all_in_it(slow_server: MockServer, run_loop: Run[None]) -> None:
    async def main() -> None:
        client, loop = client_for(slow_server), asyncio.get_running_loop()

        async def expire(timeout: asyncio.Timeout) -> None:
            await in_flight(slow_server, 20)
            timeout.reschedule(loop.time())

        with pytest.raises(TimeoutError):  # noqa: PT012
            async with asyncio.timeout(None) as timeout:
                expires = asyncio.create_task(expire(timeout))
                await asyncio.gather(*(client.complete("x") for _ in range(20)))
        await expires
        await gone(slow_server, 20)

    run_loop(main())


def test_a_failure_in_a_task_group_closes_its_siblings_connections(
    slow_server: MockServer, run_loop: Run[None]
) -> None:
    slow_server.when("fails", Answer(status=400, latency=0.0))

    async def main() -> None:
        client = client_for(slow_server)
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(client.complete("waits"))
                await in_flight(slow_server, 10)
                group.create_task(client.complete("fails"))
        assert [type(error) for error in caught.value.exceptions] == [BadRequestError]
        await eventually(lambda: slow_server.stats.in_flight == 0 and slow_server.stats.open_connections <= 1)

    run_loop(main())
    assert slow_server.stats.aborted == 10


@pytest.mark.parametrize("end", ["close", "throw", "collect"])
def test_a_coroutine_that_ends_without_its_answer_closes_its_connection(
    slow_server: MockServer, run_loop: Run[None], end: str
) -> None:
    async def main() -> None:
        coroutine = client_for(slow_server).complete("x")
        coroutine.send(None)
        await in_flight(slow_server, 1)
        if end == "close":
            coroutine.close()
        elif end == "throw":
            with pytest.raises(LookupError):
                coroutine.throw(LookupError())
        else:
            del coroutine
            gc.collect()
        await gone(slow_server, 1)

    run_loop(main())


def test_a_coroutine_that_is_never_awaited_sends_nothing(mock_server: MockServer) -> None:
    async def main() -> None:
        client = client_for(mock_server)
        client.complete("x").close()
        assert await client.complete("y") == "echo: y"

    asyncio.run(main())
    assert mock_server.stats.requests == 1


def test_a_cancelled_batch_closes_all_its_connections(slow_server: MockServer, run_loop: Run[None]) -> None:
    async def main() -> None:
        client = client_for(slow_server)
        batch = asyncio.create_task(client.batch_complete(["x"] * 1000, max_concurrent=300))
        await in_flight(slow_server, 300)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        await gone(slow_server, 300)
        assert client.stats().in_flight == 0

    run_loop(main())
    assert slow_server.stats.requests == 300


def test_cancelling_those_who_wait_for_a_place_sends_nothing_for_them(
    slow_server: MockServer, run_loop: Run[None]
) -> None:
    slow_server.when("after", Answer(text="served", latency=0.0))

    async def main() -> None:
        client = client_for(slow_server, max_concurrency=5)
        tasks = [asyncio.create_task(client.complete("x")) for _ in range(100)]
        await in_flight(slow_server, 5)
        for task in reversed(tasks):  # those who wait first, or they would get the places of the others
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await client.complete("after") == "served"

    run_loop(main())
    assert slow_server.stats.requests == 6


def test_cancelling_those_who_wait_for_a_limiter_gives_their_turn_to_others(run_loop: Run[None]) -> None:
    async def main() -> None:
        limiter = RateLimiter(requests_per_minute=1, tokens_per_minute=1000)
        await limiter.acquire()
        tasks = [asyncio.create_task(limiter.acquire()) for _ in range(500)]
        await eventually(lambda: limiter.waiting == 500)
        for task in tasks:
            task.cancel()
        await eventually(lambda: limiter.waiting == 0)

    run_loop(main())


def test_2000_cancelled_requests_leave_the_server_within_a_second(
    slow_server: MockServer, run_loop: Run[None], record_property: Callable[[str, object], None]
) -> None:
    slow_server.when("after", Answer(text="served", latency=0.0))

    async def main() -> None:
        client = client_for(slow_server, max_concurrency=STORM)
        tasks = [asyncio.create_task(client.complete("x")) for _ in range(STORM)]
        await in_flight(slow_server, STORM)
        assert slow_server.stats.open_connections == STORM

        began = time.monotonic()
        for task in tasks:
            task.cancel()
        await eventually(lambda: all_left(slow_server))
        seconds = time.monotonic() - began

        record_property("seconds_to_zero_connections", seconds)
        sys.stdout.write(f"{STORM} connections gone after {seconds:.3f} s\n")
        assert seconds < STORM_S
        assert all(task.cancelled() for task in tasks)
        assert client.stats().in_flight == 0
        assert await client.complete("after") == "served"

    run_loop(main())
    assert slow_server.stats.aborted == STORM


def test_20000_cancels_over_few_connections_leave_the_client_whole(mock_server: MockServer) -> None:
    # Cancelled at any moment: before the start, in the queue, in flight, with the answer on its way.
    async def main() -> None:
        client = client_for(mock_server, max_concurrency=10)
        for turn in range(200):
            tasks = [asyncio.create_task(client.complete("x")) for _ in range(100)]
            for _ in range(turn % 20):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {asyncio.CancelledError, str}
        answers = await asyncio.gather(*(client.complete("y") for _ in range(1000)))
        assert answers == ["echo: y"] * 1000
        assert client.stats().in_flight == 0

    asyncio.run(main())
    assert mock_server.stats.max_in_flight <= 20  # the server learns of a cancel later than the window


# Loops that come and go


def test_one_client_made_before_any_loop_serves_one_loop_after_another(mock_server: MockServer) -> None:
    client = client_for(mock_server)
    for i in range(20):
        assert asyncio.run(client.complete(f"{i}")) == f"echo: {i}"
        assert uvloop.run(client.complete(f"{i}")) == f"echo: {i}"

    assert mock_server.stats.connections == 1  # the pool belongs to no loop


PREAMBLE = """
import asyncio, gc, os, sys, threading, time, weakref
from millstream import AsyncClient, Client

client = AsyncClient(api_key="test", base_url=sys.argv[1], model="any", max_concurrency=1000)

class LoopWithoutReaders(asyncio.SelectorEventLoop):
    def add_reader(self, fd, callback, *args):
        raise NotImplementedError

def new_loop():
    if sys.argv[2] == "uvloop":
        import uvloop
        return uvloop.new_event_loop()
    return LoopWithoutReaders() if sys.argv[2] == "no readers" else asyncio.new_event_loop()

def counts():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

async def started(number):
    while client.stats().in_flight < number:
        await asyncio.sleep(0.001)

def until(claim, what=lambda: None):
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline, what()
        time.sleep(0.001)
"""


def script(body: str) -> str:
    return PREAMBLE + textwrap.dedent(body)


@counts_in_proc
@pytest.mark.timeout(200)  # on a busy machine many loops are too late and done again
@pytest.mark.parametrize("loop", LOOPS)
def test_200_loops_closed_with_work_in_flight_leave_nothing_behind(loop: str) -> None:
    # The tasks are held, so their requests go on and the answers come when the loop has long been closed.
    closes = script("""
        def close_one_early():
            while True:
                loop = new_loop()
                tasks = [loop.create_task(client.complete("x")) for _ in range(3)]
                for task in tasks:
                    task._log_destroy_pending = False  # asyncio's own complaint about such tasks
                loop.run_until_complete(started(1))
                loop.close()
                if not any(task.done() for task in tasks):  # or else a busy machine took longer than the answer
                    return tasks

        def several(number):
            loops = weakref.WeakSet()
            for _ in range(number):
                tasks = close_one_early()
                loops.add(tasks[0].get_loop())
                until(lambda: client.stats().in_flight == 0)
                assert not any(task.done() for task in tasks)
            tasks = None
            loop = new_loop()
            loop.run_until_complete(client.complete("y"))
            loop.close()
            del loop
            gc.collect()
            return loops

        several(5)
        until(lambda: counts()[1] <= 2 + (sys.argv[2] == "no readers"), counts)
        before = counts()
        loops = several(200)
        until(lambda: all(now <= then + 3 for now, then in zip(counts(), before)), lambda: (before, counts()))
        assert len(loops) <= 1, len(loops)
    """)
    with MockServer(latency=0.05) as server:
        assert run(closes, server.base_url, loop, patience=150) == SILENT
        assert server.stats.answered >= 3 * 205 + 2


@counts_in_proc
@pytest.mark.parametrize("loop", LOOPS)
def test_200_loops_closed_and_forgotten_with_work_in_flight_abort_it(loop: str) -> None:
    closes = script("""
        def several(number):
            for _ in range(number):
                loop = new_loop()
                for _ in range(3):
                    loop.create_task(client.complete("x"))._log_destroy_pending = False
                loop.run_until_complete(started(1))
                loop.close()
                del loop
                gc.collect()

        several(5)
        before = counts()
        several(200)
        loop = new_loop()
        waits = loop.create_task(client.complete("x"))
        loop.run_until_complete(asyncio.sleep(0))
        gc.collect()
        until(lambda: client.stats().in_flight <= 1, client.stats)
        until(lambda: all(now <= then + 8 for now, then in zip(counts(), before)), lambda: (before, counts()))
        waits.cancel()
        loop.run_until_complete(asyncio.wait([waits]))
        loop.close()
    """)
    with MockServer(latency=30.0) as server:
        assert run(closes, server.base_url, loop, patience=50) == SILENT
        until(lambda: all_left(server))
        assert server.stats.answered == 0


@counts_in_proc
@pytest.mark.parametrize("loop", LOOPS)
def test_300_loops_that_end_well_leave_nothing_behind(mock_server: MockServer, loop: str) -> None:
    ends_well = script("""
        def several(number):
            for _ in range(number):
                with asyncio.Runner(loop_factory=new_loop) as runner:
                    assert runner.run(client.complete("x")) == "echo: x"
            gc.collect()

        several(5)
        before = counts()
        several(300)
        until(lambda: all(now <= then + 3 for now, then in zip(counts(), before)), lambda: (before, counts()))
    """)
    assert run(ends_well, mock_server.base_url, loop, patience=50) == SILENT
    assert mock_server.stats.connections == 1


def test_a_late_answer_to_a_closed_loop_is_no_sigpipe(mock_server: MockServer) -> None:
    # Tools for the command line often restore the signal's default action, which ends the process.
    late = script("""
        import signal

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        loop = asyncio.new_event_loop()
        task = loop.create_task(client.complete("x"))
        task._log_destroy_pending = False
        loop.run_until_complete(started(1))
        loop.close()
        assert asyncio.run(client.complete("y")) == "echo: y"
        until(lambda: client.stats().in_flight == 0)
        assert asyncio.run(client.complete("z")) == "echo: z"
    """)
    mock_server.when('"x"', Answer(latency=0.5))
    assert run(late, mock_server.base_url, "asyncio") == SILENT
    assert mock_server.stats.answered == 3


# Threads


def test_8_threads_with_loops_of_their_own_share_a_client_with_blocking_ones(mock_server: MockServer) -> None:
    client, blocking = client_for(mock_server), blocking_for(mock_server)
    together = threading.Barrier(10)
    kinds = [*LOOPS.values()]

    def in_a_loop(number: int) -> None:
        async def main() -> None:
            prompts = [f"{number}.{i}" for i in range(100)]
            expected = [f"echo: {prompt}" for prompt in prompts]
            assert await asyncio.gather(*map(client.complete, prompts)) == expected
            assert await client.batch_complete(prompts) == expected

        together.wait()
        for _ in range(3):
            with asyncio.Runner(loop_factory=kinds[number % len(kinds)]) as runner:
                runner.run(main())

    def in_none(number: int) -> None:
        together.wait()
        prompts = [f"{number}.{i}" for i in range(100)]
        for _ in range(3):
            assert blocking.batch_complete(prompts) == [f"echo: {prompt}" for prompt in prompts]
            assert [blocking.complete(prompt) for prompt in prompts] == [f"echo: {prompt}" for prompt in prompts]

    with ThreadPoolExecutor(10) as pool:
        ends = [pool.submit(in_a_loop if number < 8 else in_none, number) for number in range(10)]
        for end in ends:
            end.result(timeout=50)

    assert mock_server.stats.answered == 10 * 3 * 200


@counts_in_proc
def test_the_engine_has_one_thread_however_many_use_it(mock_server: MockServer) -> None:
    counts = script("""
        before = counts()[1]
        blocking = [
            Client(api_key="test", base_url=sys.argv[1], model="any", max_concurrency=100) for _ in range(8)
        ]
        barrier = threading.Barrier(8)

        def ask(client):
            barrier.wait()
            client.batch_complete(["x"] * 100)

        threads = [threading.Thread(target=ask, args=(each,)) for each in blocking]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(client.batch_complete(["x"] * 100))
        until(lambda: counts()[1] == before + 1, counts)
        assert threading.active_count() == 1
    """)
    assert run(counts, mock_server.base_url, "asyncio") == SILENT
    assert mock_server.stats.answered == 900


def test_a_blocking_call_lets_other_threads_run(mock_server: MockServer) -> None:
    # Answered only once all eight are there: a call that kept the GIL would wait for ever.
    mock_server.script(Answer(latency=1.0, times=8))
    client = blocking_for(mock_server)

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(client.complete, "x") for _ in range(8)]
        until(lambda: mock_server.stats.in_flight == 8)  # this thread runs, too
        assert [call.result() for call in calls] == ["echo: x"] * 8

    assert mock_server.stats.max_in_flight == 8


def test_a_blocking_wait_for_a_limiter_lets_other_threads_run() -> None:
    limiter = RateLimiter(requests_per_minute=60)
    assert limiter.try_acquire(60) is not None

    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(limiter.acquire_blocking)
        until(lambda: limiter.waiting == 1)
        assert waits.result(timeout=30).requests == 1


def test_a_blocking_client_works_inside_a_running_loop(mock_server: MockServer, run_loop: Run[None]) -> None:
    async def main() -> None:
        client, blocking = client_for(mock_server), blocking_for(mock_server)
        task = asyncio.create_task(client.complete("awaited"))
        await asyncio.sleep(0)
        assert blocking.complete("blocked") == "echo: blocked"
        assert blocking.batch_complete(["a", "b"]) == ["echo: a", "echo: b"]
        assert await task == "echo: awaited"
        assert await asyncio.to_thread(blocking.complete, "thread") == "echo: thread"

    run_loop(main())
    assert mock_server.stats.answered == 5


# Before the first call


@counts_in_proc
def test_importing_starts_no_thread_and_opens_nothing() -> None:
    imports = """
        import os, threading

        def counts():
            return sorted(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task"), threading.active_count()

        before = counts()
        import millstream, millstream.testing
        assert counts() == before, (before, counts())
        millstream.Client(api_key="test"), millstream.AsyncClient(api_key="test").with_options(timeout=1)
        millstream.RateLimiter(requests_per_minute=1)
        assert counts() == before, (before, counts())
    """
    assert run(imports) == SILENT


def test_a_script_that_asks_through_a_closed_stderr_still_works(mock_server: MockServer) -> None:
    asks = script("""
        os.close(2)
        print(asyncio.run(client.complete("x")), flush=True)
    """)
    with Child(asks, mock_server.base_url, "asyncio") as child:
        assert child.line() == "echo: x"
        assert child.end()[0] == 0
