"""How a process with millstream in it ends: silently, at once, and on Ctrl-C."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
from child import Child, run, until
from millstream.testing import Answer, MockServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(60)

SILENT = (0, "", "")
PROMPT_S = 5.0
"""An exit that takes longer, the start of the interpreter included, waits for something."""

CTRL_C_S = 1.0
"""The promise is 0.5 s and 0.05 s are usual; the rest is for a machine that has other things to do."""

PREAMBLE = """
import asyncio, atexit, signal, sys, threading, time
from millstream import AsyncClient, Client, RateLimiter

options = dict(api_key="test", base_url=sys.argv[1], model="any", max_concurrency=1000, timeout=60)
asynchronous, blocking = AsyncClient(**options), Client(**options)

def until(claim):
    while not claim():
        time.sleep(0.001)

def told():
    \"\"\"Wait until the test has seen at the server what it wants to see there.\"\"\"
    sys.stdin.readline()
"""


@pytest.fixture
def slow_server() -> Iterator[MockServer]:
    with MockServer(latency=30.0) as server:
        yield server


def script(body: str) -> str:
    return PREAMBLE + textwrap.dedent(body)


def all_left(server: MockServer) -> bool:
    return server.stats.in_flight == 0 and server.stats.open_connections == 0


def end(server: MockServer, body: str, in_flight: int = 0) -> tuple[int, str, str]:
    """Run ``body``; it is told once so many requests are in flight at the server, which then must see them all go."""
    with Child(script(body), server.base_url) as child:
        until(lambda: server.stats.in_flight >= in_flight)
        if in_flight:
            child.say()
        began = time.monotonic()
        ended = child.end()
        assert time.monotonic() - began < PROMPT_S
    until(lambda: all_left(server))
    return ended


def test_exit_right_after_import_is_silent() -> None:
    assert run("import millstream") == SILENT


def test_exit_with_clients_that_were_never_used_is_silent(mock_server: MockServer) -> None:
    assert end(mock_server, "limiter = RateLimiter(requests_per_minute=1)") == SILENT
    assert mock_server.stats.connections == 0


def test_exit_after_use_without_a_close_is_silent(mock_server: MockServer) -> None:
    used = """
        assert len(blocking.batch_complete(["x"] * 100)) == 100
        assert len(asyncio.run(asynchronous.batch_complete(["x"] * 100))) == 100
    """
    assert end(mock_server, used) == SILENT
    assert mock_server.stats.answered == 200


def test_end_of_asyncio_run_with_work_in_flight_is_silent(slow_server: MockServer) -> None:
    ends_early = """
        async def main():
            tasks = [asyncio.create_task(asynchronous.complete("x")) for _ in range(50)]
            tasks.append(asyncio.create_task(asynchronous.batch_complete(["x"] * 50)))
            await asyncio.to_thread(told)

        asyncio.run(main())
    """
    assert end(slow_server, ends_early, in_flight=100) == SILENT
    assert slow_server.stats.aborted == 100


def test_end_of_asyncio_run_closes_connections_though_the_process_lives_on(slow_server: MockServer) -> None:
    lives_on = script("""
        async def main():
            tasks = [asyncio.create_task(asynchronous.complete("x")) for _ in range(50)]
            await asyncio.to_thread(told)

        asyncio.run(main())
        told()
    """)
    with Child(lives_on, slow_server.base_url) as child:
        until(lambda: slow_server.stats.in_flight == 50)
        child.say()
        until(lambda: slow_server.stats.aborted == 50 and all_left(slow_server))
        assert child.end() == SILENT


@pytest.mark.parametrize("closed", [False, True])
def test_exit_with_work_in_flight_in_an_abandoned_loop_is_silent(slow_server: MockServer, closed: bool) -> None:
    abandoned = """
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(asynchronous.complete("x")) for _ in range(50)]
        loop.run_until_complete(asyncio.to_thread(told))
        # asyncio's own complaints about any task and any loop that is left like this.
        for task in tasks:
            task._log_destroy_pending = False
        asyncio.BaseEventLoop.__del__ = lambda loop: None
        loop.run_until_complete(loop.shutdown_default_executor())
    """
    if closed:
        abandoned += "\n        loop.close()"
    assert end(slow_server, abandoned, in_flight=50) == SILENT
    assert slow_server.stats.aborted == 50


def test_sys_exit_in_a_loop_with_work_in_flight_exits_with_its_code(slow_server: MockServer) -> None:
    exits = """
        async def main():
            tasks = [asyncio.create_task(asynchronous.complete("x")) for _ in range(50)]
            await asyncio.to_thread(told)
            sys.exit(7)

        asyncio.run(main())
    """
    assert end(slow_server, exits, in_flight=50) == (7, "", "")
    assert slow_server.stats.aborted == 50


def test_exit_while_daemon_threads_wait_is_silent(slow_server: MockServer) -> None:
    # They wake every 50 ms to look for signals. The interpreter takes longer to go here, so they wake in its midst.
    threads = """
        for _ in range(50):
            threading.Thread(target=blocking.complete, args=("x",), daemon=True).start()
        threading.Thread(target=blocking.batch_complete, args=(["x"] * 50,), daemon=True).start()
        limiter = RateLimiter(requests_per_minute=1)
        limiter.acquire_blocking()
        threading.Thread(target=limiter.acquire_blocking, daemon=True).start()

        class Last:
            def __del__(self, sleep=time.sleep):
                sleep(0.3)

        last = Last()
        told()
    """
    assert end(slow_server, threads, in_flight=100) == SILENT
    assert slow_server.stats.aborted == 100


def test_exit_while_daemon_threads_get_answers_is_silent(mock_server: MockServer) -> None:
    threads = """
        def ask():
            while True:
                blocking.batch_complete(["x"] * 10)

        for _ in range(10):
            threading.Thread(target=ask, daemon=True).start()
        until(lambda: blocking.stats().succeeded > 200)
    """
    assert end(mock_server, threads) == SILENT


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "no readers"])
def test_exit_while_daemon_threads_run_loops_is_silent(mock_server: MockServer, loop: str) -> None:
    # An interpreter that exits ends these threads wherever they run Python; the short switch interval makes that likely
    # to be while they are being handed answers.
    threads = f"""
        sys.setswitchinterval(1e-6)

        class LoopWithoutReaders(asyncio.SelectorEventLoop):
            def add_reader(self, fd, callback, *args):
                raise NotImplementedError

        def new_loop():
            if "{loop}" == "uvloop":
                import uvloop
                return uvloop.new_event_loop()
            return LoopWithoutReaders() if "{loop}" == "no readers" else asyncio.new_event_loop()

        async def ask():
            while True:
                await asynchronous.complete("x")

        async def main():
            await asyncio.gather(*(ask() for _ in range(100)))

        for _ in range(4):
            threading.Thread(target=new_loop().run_until_complete, args=(main(),), daemon=True).start()
        until(lambda: asynchronous.stats().succeeded > 500)
    """
    for _ in range(10):
        assert end(mock_server, threads) == SILENT


def test_a_loop_in_an_exit_handler_gets_its_answers(mock_server: MockServer) -> None:
    # Registered before the package's own exit handler, so it runs after that.
    late = """
        import atexit, sys
        atexit.register(lambda: print(asyncio.run(client.complete("bye"))))
        import asyncio
        from millstream import AsyncClient
        client = AsyncClient(api_key="test", base_url=sys.argv[1], model="any")
    """
    assert run(late, mock_server.base_url) == (0, "echo: bye", "")


def test_loops_of_other_threads_are_left_alone_once_the_interpreter_ends(mock_server: MockServer) -> None:
    # A loop that wakes takes the GIL, which uvloop's does also when there is no interpreter left: a segmentation fault.
    late = """
        import asyncio, atexit, selectors, sys, threading, time

        def until(claim):
            while not claim():
                time.sleep(0.001)

        class Counting(selectors.DefaultSelector):
            woken = 0

            def select(self, timeout=None):
                ready = super().select(timeout)
                Counting.woken += 1
                return ready

        def look():  # after the package's own exit handler
            print(asyncio.run(client.complete("first")))  # the other loop waits by then
            before = Counting.woken
            until(lambda: client.stats().in_flight == 0)
            print(asyncio.run(client.complete("bye")))  # its answer comes after all that was to be told before
            print(Counting.woken - before)

        atexit.register(look)
        from millstream import AsyncClient
        client = AsyncClient(api_key="test", base_url=sys.argv[1], model="any", max_concurrency=1000)

        async def main():
            await client.complete("first")
            await asyncio.gather(*(client.complete("slow") for _ in range(100)))

        loop = asyncio.SelectorEventLoop(Counting())
        threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True).start()
        until(lambda: client.stats().in_flight == 100)
    """
    mock_server.when("slow", Answer(text="late", latency=3.0, times=0))
    assert run(late, mock_server.base_url) == (0, "echo: first\necho: bye\n0", "")


def test_a_loop_of_another_thread_that_an_exit_handler_runs_gets_its_answers(mock_server: MockServer) -> None:
    late = """
        import asyncio, atexit, sys, threading
        atexit.register(lambda: (print(loop.run_until_complete(client.complete("bye"))), loop.close()))
        from millstream import AsyncClient
        client = AsyncClient(api_key="test", base_url=sys.argv[1], model="any")
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=(client.complete("first"),))
        thread.start()
        thread.join()
    """
    assert run(late, mock_server.base_url) == (0, "echo: bye", "")


def test_an_exit_handler_ends_what_a_loop_of_another_thread_began(mock_server: MockServer) -> None:
    late = """
        import asyncio, atexit, sys, threading
        atexit.register(lambda: (print(loop.run_until_complete(task)), loop.close()))
        from millstream import AsyncClient
        client = AsyncClient(api_key="test", base_url=sys.argv[1], model="any")
        loop = asyncio.new_event_loop()

        async def begin():
            global task
            task = asyncio.ensure_future(client.complete("slow"))
            while not client.stats().in_flight:
                await asyncio.sleep(0.001)

        thread = threading.Thread(target=loop.run_until_complete, args=(begin(),))
        thread.start()
        thread.join()
    """
    mock_server.when("slow", Answer(text="late", latency=0.5, times=0))
    assert run(late, mock_server.base_url) == (0, "late", "")


def test_an_exit_handler_takes_over_the_loop_of_a_daemon_thread(mock_server: MockServer) -> None:
    # What was answered while nobody was to be woken is told with the next call.
    late = """
        import asyncio, atexit, sys, threading, time

        def until(claim):
            while not claim():
                time.sleep(0.001)

        def take_over():
            until(lambda: not client.stats().in_flight)
            asyncio.run(client.complete("after that"))
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            print(loop.run_until_complete(client.complete("bye")), task.result())
            loop.close()

        atexit.register(take_over)
        from millstream import AsyncClient
        client = AsyncClient(api_key="test", base_url=sys.argv[1], model="any")
        loop = asyncio.new_event_loop()

        def run():
            global task
            asyncio.set_event_loop(loop)
            task = loop.create_task(client.complete("slow"))
            loop.run_forever()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        until(lambda: client.stats().in_flight)
    """
    mock_server.when("slow", Answer(text="late", latency=2.0, times=0))
    assert run(late, mock_server.base_url) == (0, "echo: bye late", "")


def test_a_daemon_thread_that_an_exit_handler_waits_for_ends_its_calls(mock_server: MockServer) -> None:
    late = """
        import atexit, queue, sys, threading
        atexit.register(lambda: (items.put("bye"), items.put(None), worker.join()))
        from millstream import Client
        client = Client(api_key="test", base_url=sys.argv[1], model="any")
        items = queue.Queue()
        worker = threading.Thread(
            target=lambda: [print(client.complete(item)) for item in iter(items.get, None)], daemon=True
        )
        worker.start()
        items.put("hi")
    """
    assert run(late, mock_server.base_url) == (0, "echo: hi\necho: bye", "")


def test_a_call_in_an_exit_handler_is_answered(mock_server: MockServer) -> None:
    assert end(mock_server, 'atexit.register(lambda: print(blocking.complete("bye")))') == (0, "echo: bye", "")


def test_sigterm_ends_the_process_at_once(slow_server: MockServer) -> None:
    with Child(script('blocking.batch_complete(["x"] * 50)'), slow_server.base_url) as child:
        until(lambda: slow_server.stats.in_flight == 50)
        sent = child.send(signal.SIGTERM)
        assert child.end() == (-signal.SIGTERM, "", "")
        assert time.monotonic() - sent < PROMPT_S
    until(lambda: all_left(slow_server))


# "ready" is said from a thread once the main one is in its wait. The process stays after Ctrl-C, so that it is not its
# end that closes the connections.
INTERRUPTED = """
def announce():
    until(lambda: {ready})
    print("ready", flush=True)

threading.Thread(target=announce, daemon=True).start()
try:
    {call}
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
told()
"""


@pytest.fixture
def interrupt(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Call, Ctrl-C, and check that it ended in time and that nothing is left at the server."""

    def check(server: MockServer, call: str, ready: str, in_flight: int = 0) -> None:
        with Child(PREAMBLE + INTERRUPTED.format(call=call, ready=ready), server.base_url) as child:
            assert child.line() == "ready"
            until(lambda: server.stats.in_flight == in_flight)
            child.settle()
            sent = child.send(signal.SIGINT)
            seconds = float(child.line()) - sent
            record_property("seconds_to_keyboard_interrupt", seconds)
            sys.stdout.write(f"KeyboardInterrupt after {seconds:.3f} s\n")
            until(lambda: server.stats.in_flight == 0)
            if in_flight:
                until(lambda: server.stats.open_connections == 0)
            assert child.end() == SILENT
        assert seconds < CTRL_C_S
        assert server.stats.aborted == in_flight

    return check


@pytest.mark.parametrize(
    ("call", "in_flight"),
    [
        ('blocking.batch_complete(["x"] * 200)', 200),
        ('blocking.complete("x")', 1),
        ("blocking.models.list()", 1),
        ('asyncio.run(asynchronous.batch_complete(["x"] * 200))', 200),
        ('asyncio.run(asynchronous.complete("x"))', 1),
    ],
)
def test_ctrl_c_ends_a_call_and_closes_its_connections(
    slow_server: MockServer, call: str, in_flight: int, interrupt: Callable[..., None]
) -> None:
    interrupt(slow_server, call, "True", in_flight)
    assert slow_server.stats.answered == 0


@pytest.mark.parametrize("call", ['blocking.complete("x")', 'asyncio.run(asynchronous.complete("x"))'])
def test_ctrl_c_ends_the_wait_before_a_retry(
    mock_server: MockServer, call: str, interrupt: Callable[..., None]
) -> None:
    mock_server.script(Answer(status=503, headers={"Retry-After": "50"}, times=0))
    stats = "(asynchronous if asynchronous.stats().attempts else blocking).stats()"
    interrupt(mock_server, call, f"{stats}.attempts == 1 and {stats}.in_flight == 0")
    assert mock_server.stats.requests == 1


@pytest.mark.parametrize("call", ["limiter.acquire_blocking()", "asyncio.run(limiter.acquire())"])
def test_ctrl_c_ends_the_wait_for_a_rate_limit(
    mock_server: MockServer, call: str, interrupt: Callable[..., None]
) -> None:
    call = f"""
    limiter = RateLimiter(requests_per_minute=1)
    limiter.acquire_blocking()
    try:
        {call}
    finally:
        until(lambda: limiter.waiting == 0)
    """
    interrupt(mock_server, call, '"limiter" in globals() and limiter.waiting == 1')


@pytest.mark.parametrize(
    "call",
    [
        'Client(**options, rate_limiter=limiter).batch_complete(["x"] * 10)',
        'asyncio.run(AsyncClient(**options, rate_limiter=limiter).batch_complete(["x"] * 10))',
    ],
)
def test_ctrl_c_ends_the_wait_of_requests_for_a_rate_limit(
    mock_server: MockServer, call: str, interrupt: Callable[..., None]
) -> None:
    call = f"""
    limiter = RateLimiter(requests_per_minute=1)
    {call}
    """
    interrupt(mock_server, call, '"limiter" in globals() and limiter.waiting == 9')
    assert mock_server.stats.requests == 1


def test_a_client_works_after_ctrl_c(slow_server: MockServer) -> None:
    goes_on = """
        try:
            blocking.complete("x")
        except KeyboardInterrupt:
            print(blocking.complete("y"))
    """
    slow_server.when('"y"', Answer(text="still here", latency=0.0))
    with Child(script(goes_on), slow_server.base_url) as child:
        until(lambda: slow_server.stats.in_flight == 1)
        child.send(signal.SIGINT)
        assert child.end() == (0, "still here", "")
    assert slow_server.stats.aborted == 1


def test_a_signal_handler_that_raises_ends_a_blocking_call_with_its_error(slow_server: MockServer) -> None:
    stopped = """
        class Stop(Exception):
            pass

        def stop(*_):
            raise Stop

        signal.signal(signal.SIGUSR1, stop)
        try:
            blocking.complete("x")
        except Stop:
            print("stopped")
    """
    with Child(script(stopped), slow_server.base_url) as child:
        until(lambda: slow_server.stats.in_flight == 1)
        child.send(signal.SIGUSR1)
        assert child.end() == (0, "stopped", "")
    until(lambda: all_left(slow_server))


def test_a_signal_handler_that_returns_leaves_a_blocking_call_alone(slow_server: MockServer) -> None:
    told = """
        signal.signal(signal.SIGUSR1, lambda *_: print("told", flush=True))
        print(blocking.complete("x"))
    """
    slow_server.script(Answer(text="answered", latency=1.0))
    with Child(script(told), slow_server.base_url) as child:
        until(lambda: slow_server.stats.in_flight == 1)
        child.send(signal.SIGUSR1)
        assert child.line() == "told"
        assert child.end() == (0, "answered", "")
    assert slow_server.stats.aborted == 0
