"""Fork: the child has calls of its own, and the parent's go on as if nothing had been.

The scripts run in processes of their own, where a child that hangs is killed by its alarm and so is a failure.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from child import Child, run, until
from millstream.testing import MockServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(90)

SILENT = (0, "", "")

PREAMBLE = """
import asyncio, gc, os, signal, sys, threading, time, traceback
from millstream import AsyncClient, Client, RateLimiter

options = dict(api_key="test", base_url=sys.argv[1], model="any", max_concurrency=1000, max_retries=0, timeout=60)
asynchronous, blocking = AsyncClient(**options), Client(**options)

def until(claim):
    while not claim():
        time.sleep(0.001)

def fork(work):
    \"\"\"Do ``work`` in a child, which ends as an interpreter ends, or is killed after 10 s.\"\"\"
    # Out of a loop or a thread of the parent's there is no such end, only this one.
    main = asyncio._get_running_loop() is None and threading.current_thread() is threading.main_thread()
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(10)
    try:
        work()
        gc.collect()
        sys.stdout.flush()
    except SystemExit:
        raise  # the end of a grandchild
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    (sys.exit if main else os._exit)(0)

def join(*pids):
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * len(pids), codes

def ask_both_ways():
    assert blocking.complete("child") == "echo: child"
    assert asyncio.run(asynchronous.complete("child")) == "echo: child"
    assert blocking.batch_complete(["child"] * 20) == ["echo: child"] * 20
    assert asyncio.run(asynchronous.batch_complete(["child"] * 20)) == ["echo: child"] * 20

ASKED = 42
"""

ASKED = 42
"""Requests that ``ask_both_ways`` makes."""


def script(body: str) -> str:
    return PREAMBLE + textwrap.dedent(body)


def contents(server: MockServer) -> Counter[str]:
    """How often each prompt was seen."""
    return Counter(request.json()["messages"][-1]["content"] for request in server.requests)


def connections(server: MockServer, content: str) -> set[int]:
    """The connections that carried a prompt."""
    return {r.connection for r in server.requests if r.json()["messages"][-1]["content"] == content}


def untouched(server: MockServer) -> bool:
    """No request was cut off, and parent and children shared no connection."""
    return server.stats.aborted == 0 and not connections(server, "parent") & connections(server, "child")


@pytest.fixture
def slow_server() -> Iterator[MockServer]:
    with MockServer(latency=1.0) as server:
        yield server


def test_fork_before_the_first_use_serves_both(mock_server: MockServer) -> None:
    forks = """
        pid = fork(ask_both_ways)
        assert blocking.complete("parent") == "echo: parent"
        join(pid)
    """
    assert run(script(forks), mock_server.base_url) == SILENT
    assert contents(mock_server) == {"child": ASKED, "parent": 1}
    assert untouched(mock_server)


def test_fork_after_use_serves_both_and_the_parent_keeps_its_connections(mock_server: MockServer) -> None:
    forks = """
        assert blocking.complete("parent") == "echo: parent"
        for _ in range(3):
            join(fork(ask_both_ways))
            assert blocking.complete("parent") == "echo: parent"
    """
    assert run(script(forks), mock_server.base_url) == SILENT
    assert contents(mock_server) == {"child": 3 * ASKED, "parent": 4}
    assert len(connections(mock_server, "parent")) == 1
    assert untouched(mock_server)


def test_fork_after_use_in_a_loop_serves_both(mock_server: MockServer) -> None:
    forks = """
        assert asyncio.run(asynchronous.complete("parent")) == "echo: parent"
        join(fork(ask_both_ways))
        assert asyncio.run(asynchronous.complete("parent")) == "echo: parent"
    """
    assert run(script(forks), mock_server.base_url) == SILENT
    assert contents(mock_server) == {"child": ASKED, "parent": 2}
    assert len(connections(mock_server, "parent")) == 1
    assert untouched(mock_server)


def test_a_child_that_only_exits_leaves_the_parents_connections_open(mock_server: MockServer) -> None:
    forks = """
        assert blocking.complete("parent") == "echo: parent"
        join(fork(lambda: None))
        join(fork(lambda: (blocking.close(), asyncio.run(asynchronous.aclose()))))
        assert blocking.complete("parent") == "echo: parent"
    """
    assert run(script(forks), mock_server.base_url) == SILENT
    assert len(connections(mock_server, "parent")) == 1
    assert mock_server.stats.connections == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_fork_with_requests_in_flight_leaves_them_unharmed(slow_server: MockServer, loop: str) -> None:
    # The child also drops what it inherited of the parent's loop, and the collector goes over it.
    forks = f"""
        import {loop}

        async def main():
            single = [asyncio.create_task(asynchronous.complete("parent")) for _ in range(50)]
            batch = asyncio.create_task(asynchronous.batch_complete(["parent"] * 50))
            await asyncio.to_thread(sys.stdin.readline)

            def child():
                nonlocal single, batch
                assert blocking.complete("child") == "echo: child"
                assert blocking.batch_complete(["child"] * 20) == ["echo: child"] * 20
                single = batch = None

            pid = fork(child)
            assert await asyncio.gather(*single) == ["echo: parent"] * 50
            assert await batch == ["echo: parent"] * 50
            await asyncio.to_thread(join, pid)

        {loop}.run(main())
    """
    with Child(script(forks), slow_server.base_url) as parent:
        until(lambda: slow_server.stats.in_flight == 100)
        parent.say()
        assert parent.end() == SILENT
    assert contents(slow_server) == {"parent": 100, "child": 21}
    assert slow_server.stats.answered == 121
    assert untouched(slow_server)


def test_a_loop_in_a_child_that_was_forked_within_a_running_one_works(slow_server: MockServer) -> None:
    forks = """
        async def main():
            tasks = [asyncio.create_task(asynchronous.complete("parent")) for _ in range(20)]
            await asyncio.to_thread(sys.stdin.readline)
            pid = fork(ask_both_ways)
            assert await asyncio.gather(*tasks) == ["echo: parent"] * 20
            await asyncio.to_thread(join, pid)

        asyncio.run(main())
    """
    with Child(script(forks), slow_server.base_url) as parent:
        until(lambda: slow_server.stats.in_flight == 20)
        parent.say()
        assert parent.end() == SILENT
    assert contents(slow_server) == {"parent": 20, "child": ASKED}
    assert untouched(slow_server)


def test_cancelling_in_a_child_what_the_parent_began_does_not_reach_the_parent(slow_server: MockServer) -> None:
    forks = """
        async def main():
            tasks = [asyncio.create_task(asynchronous.complete("parent")) for _ in range(20)]
            await asyncio.to_thread(sys.stdin.readline)

            def child():
                for task in tasks:
                    task.get_coro().close()

            pid = fork(child)
            assert await asyncio.gather(*tasks) == ["echo: parent"] * 20
            await asyncio.to_thread(join, pid)

        asyncio.run(main())
    """
    with Child(script(forks), slow_server.base_url) as parent:
        until(lambda: slow_server.stats.in_flight == 20)
        parent.say()
        assert parent.end() == SILENT
    assert slow_server.stats.answered == 20
    assert untouched(slow_server)


def test_fork_in_one_thread_while_others_block_leaves_them_unharmed(slow_server: MockServer) -> None:
    forks = """
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(blocking.complete("parent"))) for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        sys.stdin.readline()
        pid = fork(ask_both_ways)
        for thread in threads:
            thread.join()
        assert answers == ["echo: parent"] * 20
        join(pid)
    """
    with Child(script(forks), slow_server.base_url) as parent:
        until(lambda: slow_server.stats.in_flight == 20)
        parent.say()
        assert parent.end() == SILENT
    assert contents(slow_server) == {"parent": 20, "child": ASKED}
    assert untouched(slow_server)


def test_a_child_forked_by_another_thread_than_the_main_one_works(mock_server: MockServer) -> None:
    forks = """
        assert blocking.complete("parent") == "echo: parent"
        pids = []
        thread = threading.Thread(target=lambda: pids.append(fork(ask_both_ways)))
        thread.start()
        thread.join()
        join(*pids)
        assert blocking.complete("parent") == "echo: parent"
    """
    assert run(script(forks), mock_server.base_url) == SILENT
    assert contents(mock_server) == {"parent": 2, "child": ASKED}
    assert untouched(mock_server)


def test_a_child_of_a_child_works(mock_server: MockServer) -> None:
    forks = """
        def child():
            ask_both_ways()
            join(fork(ask_both_ways))
            ask_both_ways()

        assert blocking.complete("parent") == "echo: parent"
        join(fork(child))
        assert blocking.complete("parent") == "echo: parent"
    """
    assert run(script(forks), mock_server.base_url) == SILENT
    assert contents(mock_server) == {"parent": 2, "child": 3 * ASKED}
    assert untouched(mock_server)


def test_forks_under_load_never_hang(mock_server: MockServer) -> None:
    # A lock that the engine's thread holds at the moment of a fork stays locked in the child: try many moments.
    forks = """
        stop = False

        def load():
            while not stop:
                blocking.batch_complete(["parent"] * 20)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(40):
                join(fork(lambda: blocking.batch_complete(["child"] * 5)))
        finally:
            stop = True
            for thread in threads:
                thread.join()
    """
    assert run(script(forks), mock_server.base_url, patience=80) == SILENT
    assert contents(mock_server)["child"] == 200
    assert untouched(mock_server)


def test_a_limiter_in_a_child_is_full_again_and_owes_nothing_to_those_who_wait(mock_server: MockServer) -> None:
    forks = """
        limiter = RateLimiter(requests_per_minute=2, tokens_per_minute=100)
        client = Client(**options, rate_limiter=limiter)
        held = limiter.acquire_blocking(tokens=50)
        client.complete("parent", max_tokens=5)
        for _ in range(20):
            threading.Thread(target=limiter.acquire_blocking, daemon=True).start()
        until(lambda: limiter.waiting == 20)

        def child():
            assert limiter.waiting == 0
            held.settle(10)
            assert limiter.try_acquire(tokens=50) is not None
            assert client.complete("child", max_tokens=5) == "echo: child"
            assert limiter.try_acquire() is None

        join(fork(child))
        assert limiter.waiting == 20
        assert limiter.try_acquire() is None
        print("done", flush=True)
        os._exit(0)
    """
    assert run(script(forks), mock_server.base_url) == (0, "done", "")
    assert contents(mock_server) == {"parent": 1, "child": 1}
    assert untouched(mock_server)


def test_a_child_counts_from_zero(slow_server: MockServer) -> None:
    # What the parent had in flight would never end there.
    forks = """
        thread = threading.Thread(target=blocking.complete, args=("parent",))
        thread.start()
        sys.stdin.readline()

        def child():
            now = blocking.stats()
            assert now.requests == now.in_flight == now.max_in_flight == 0, now
            blocking.complete("child")
            now = blocking.stats()
            assert (now.requests, now.succeeded, now.in_flight, now.max_in_flight) == (1, 1, 0, 1), now

        pid = fork(child)
        thread.join()
        now = blocking.stats()
        assert (now.requests, now.succeeded, now.in_flight) == (1, 1, 0), now
        join(pid)
    """
    with Child(script(forks), slow_server.base_url) as parent:
        until(lambda: slow_server.stats.in_flight == 1)
        parent.say()
        assert parent.end() == SILENT


POOL = """
import multiprocessing, os, sys
from millstream import AsyncClient, Client

client = Client(api_key="test", base_url=sys.argv[1], model="any", max_concurrency=10)

def ask(prompt):
    return client.complete(prompt), os.getpid()

def ask_many(number):
    return client.batch_complete(["child"] * number)

if __name__ == "__main__":
    if sys.argv[3] == "used":
        assert client.complete("parent") == "echo: parent"
    context = multiprocessing.get_context(sys.argv[2])
    with context.Pool(2) as pool:
        answers = pool.map(ask, ["child"] * 20, chunksize=1)
        assert [text for text, _ in answers] == ["echo: child"] * 20, answers
        assert os.getpid() not in {pid for _, pid in answers}
        assert pool.map(ask_many, [5, 5]) == [["echo: child"] * 5] * 2
        pool.close()
        pool.join()
    process = context.Process(target=ask, args=("child",))
    process.start()
    process.join(20)
    assert process.exitcode == 0, process.exitcode
    assert client.complete("parent") == "echo: parent"
"""


@pytest.mark.parametrize("used", ["used", "unused"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works(mock_server: MockServer, tmp_path: Path, method: str, used: str) -> None:
    # The children of spawn and forkserver import the script, so it has to be a file.
    path = tmp_path / "pool.py"
    path.write_text(POOL, encoding="utf-8")
    starter = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"

    assert run(starter, str(path), mock_server.base_url, method, used) == SILENT
    assert contents(mock_server) == {"parent": 2 if used == "used" else 1, "child": 31}
    assert untouched(mock_server)


def test_a_client_does_not_travel_to_another_process_and_says_so(mock_server: MockServer) -> None:
    pickles = """
        import pickle

        for client in (asynchronous, blocking):
            try:
                pickle.dumps(client)
            except TypeError as error:
                assert "make one in each process" in str(error)
            else:
                raise AssertionError
    """
    assert run(script(pickles), mock_server.base_url) == SILENT
