"""What a run's counters say of its speed, its end and its cost, and who is shown it."""

from __future__ import annotations

import asyncio
import io
import re
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from helpers import until, until_async
from millstream import Client, Progress, RateLimiter, RetryPolicy, _progress
from millstream._progress import Meter, Watch, dollars, duration, quantity, wait_cause
from millstream.testing import MockServer

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def measured(*looks: tuple[float, Progress]) -> Progress:
    """The last of some looks at the counters, each at its second."""
    clock = Clock()
    meter = Meter(clock=clock)
    for second, counters in looks:
        clock.now = 100.0 + second
        progress = meter.measure(counters)
    return progress


# ---- what follows from counters ----


def test_speeds_and_the_time_left_are_those_of_the_last_seconds() -> None:
    slow = Progress(done=100, total=1000)
    fast = Progress(done=300, failed=100, total=1000, prompt_tokens=4000, completion_tokens=2000)
    progress = measured((0, Progress(total=1000)), (90, slow), (95, slow), (110, fast))
    assert progress.elapsed == 110
    assert progress.items_per_second == pytest.approx(20)
    assert progress.tokens_per_second == pytest.approx(400)
    assert progress.eta == pytest.approx(30)


def test_tokens_of_an_earlier_run_are_no_speed() -> None:
    resumed = Progress(skipped=500, total=1000, prompt_tokens=1_000_000)
    assert measured((0, resumed), (5, resumed)).tokens_per_second == 0


def test_what_an_earlier_run_had_done_is_neither_left_nor_speed() -> None:
    progress = measured((0, Progress(skipped=500, total=1000)), (10, Progress(done=100, skipped=500, total=1000)))
    assert (progress.ended, progress.left) == (100, 400)
    assert progress.items_per_second == pytest.approx(10)
    assert progress.eta == pytest.approx(40)


def test_without_a_total_or_a_speed_the_end_is_not_known() -> None:
    assert measured((0, Progress()), (10, Progress(done=100))).eta is None
    assert measured((0, Progress(total=10)), (10, Progress(total=10))).eta is None
    assert measured((0, Progress(total=10)), (10, Progress(done=10, total=10))).eta == 0


def test_the_projected_cost_is_that_of_what_is_done_and_as_much_for_each_that_is_left() -> None:
    assert measured((1, Progress(done=40, failed=10, total=200, cost=1.0))).projected_cost == pytest.approx(4)
    assert measured((1, Progress(done=20, skipped=30, total=200, cost=1.0))).projected_cost == pytest.approx(4)


@pytest.mark.parametrize(
    "counters",
    [
        Progress(done=10, total=100),
        Progress(done=10, cost=1.0),
        Progress(done=10, total=100, cost=1.0, unpriced=1),
        Progress(total=100, cost=0.0),
    ],
)
def test_a_cost_that_cannot_be_known_is_none_and_not_zero(counters: Progress) -> None:
    assert measured((1, counters)).projected_cost is None


def test_an_unknown_price_is_said_and_never_shown_as_nothing() -> None:
    assert "cost unknown" in str(Progress(done=1, unpriced=1))
    assert "$1.50 + 2 at unknown prices" in str(Progress(done=3, cost=1.5, unpriced=2))
    assert "$" not in str(Progress(done=1))


def test_the_line_says_all_that_is_known() -> None:
    progress = Progress(
        done=900,
        failed=3,
        in_flight=64,
        total=10_000,
        skipped=97,
        cost=1.0,
        items_per_second=41.24,
        tokens_per_second=12_345.0,
        eta=205,
        projected_cost=10,
        waiting="rate",
    )
    assert str(progress) == (
        "1,000/10,000 (10 %) · 97 before · 3 failed · 64 in flight · 41.2/s · 12.3k tokens/s · 3:25 left"
        " · waits for the rate limit · $1.00 of about $10.00"
    )


@pytest.mark.parametrize(
    ("function", "value", "words"),
    [
        (duration, 5, "0:05"),
        (duration, 3725.4, "1:02:05"),
        (quantity, 0.424, "0.42"),
        (quantity, 999.4, "999"),
        (quantity, 8_100.0, "8100"),
        (quantity, 8_100, "8,100"),
        (quantity, 3_210_000, "3.2M"),
        (dollars, None, "unknown"),
        (dollars, 0, "$0.00"),
        (dollars, 1234.567, "$1,234.57"),
        (dollars, 0.0123, "$0.0123"),
        (dollars, 0.00031, "$0.00031"),
        (dollars, 0.000002, "$0.000002"),
    ],
)
def test_numbers_in_words(function: Callable[[Any], str], value: float, words: str) -> None:
    assert function(value) == words


# ---- what is waited for ----


@pytest.mark.parametrize(
    ("cause", "server", "client"),
    [
        ("rate", {}, {"rate_limiter": lambda: RateLimiter(requests_per_minute=300, burst=1)}),
        ("concurrency", {"latency": 0.5}, {"max_concurrency": lambda: 2}),
        ("server", {"outage": True}, {"retry": lambda: RetryPolicy(max_retries=1, base_delay=0.5, max_delay=0.5)}),
        (None, {"latency": 0.5}, {"max_concurrency": lambda: 100}),
    ],
)
def test_waits_for_a_limit_a_full_window_and_a_server_are_told_apart(
    cause: str | None, server: dict[str, Any], client: dict[str, Callable[[], Any]]
) -> None:
    with MockServer(latency=server.get("latency", 0.0)) as mock:
        if "outage" in server:
            mock.outage()
        options: dict[str, Any] = {name: make() for name, make in client.items()}
        with Client(base_url=mock.base_url, api_key="k", model="m", **options) as client_:
            assert wait_cause(client_.stats()) is None
            arguments = {"return_exceptions": True}
            batch = threading.Thread(target=client_.batch_complete, args=[["x"] * 6], kwargs=arguments, daemon=True)
            batch.start()
            until(lambda: mock.stats.requests > 0)
            if cause is None:
                until(lambda: mock.stats.in_flight == 6)
            until(lambda: wait_cause(client_.stats()) == cause)
            mock.recover()
            batch.join(20)
            assert not batch.is_alive()


# ---- who is shown it ----


def test_a_function_is_called_from_the_loop_and_once_more_at_the_end() -> None:
    seen: list[tuple[int, threading.Thread]] = []
    counters = Progress(total=2)

    async def run() -> None:
        nonlocal counters
        show = lambda progress: seen.append((progress.done, threading.current_thread()))  # noqa: E731
        async with Watch(lambda: counters, show):
            await until_async(lambda: len(seen) >= 2)
            counters = Progress(done=2, total=2)

    asyncio.run(run())
    assert [done for done, _ in seen] == [0] * (len(seen) - 1) + [2]
    assert {thread for _, thread in seen} == {threading.main_thread()}


def test_a_function_is_called_beside_a_thread_that_blocks() -> None:
    seen: list[int] = []
    counters = Progress(total=2)
    with Watch(lambda: counters, lambda progress: seen.append(progress.done)):
        until(lambda: len(seen) >= 2)
        counters = Progress(done=2, total=2)
    assert seen[-1] == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "millstream-progress"]


def test_a_function_that_fails_ends_the_display_and_not_the_run() -> None:
    calls = []

    def fail(progress: Progress) -> None:
        calls.append(progress)
        raise ValueError("of the user")

    async def run() -> str:
        async with Watch(Progress, fail):
            await until_async(lambda: bool(calls))
        return "answers"

    with pytest.warns(RuntimeWarning, match="display failed.*of the user"):
        assert asyncio.run(run()) == "answers"
    assert len(calls) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, show: bool | None) -> str:
    monkeypatch.setattr(sys, "stderr", out)
    watch = Watch(lambda: Progress(done=3, in_flight=4, total=10), show)
    watch.tick()
    watch.close()
    return out.getvalue()


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("absent", [[], ["rich", "rich.console"], ["rich", "rich.console", "tqdm", "tqdm.auto"]])
def test_in_a_terminal_there_is_a_line_with_whatever_is_installed(
    monkeypatch: pytest.MonkeyPatch, absent: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    without(monkeypatch, *absent)
    for show in (True, None):
        text = shown(monkeypatch, Terminal(), show)
        assert "3/10" in text
        assert "4 in flight" in text
    assert shown(monkeypatch, Terminal(), False) == ""


def test_a_narrow_terminal_gets_all_of_it_in_several_lines_or_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    text = " ".join(shown(monkeypatch, Terminal(), True).split())
    assert "3/10" in text
    assert "flight" in text
    without(monkeypatch, "rich", "rich.console", "tqdm", "tqdm.auto")
    lines = shown(monkeypatch, Terminal(), True).replace("\x1b[K", "").split("\r")
    assert len(lines) > 2
    assert all(len(line.rstrip("\n")) < 30 for line in lines)


def test_outside_of_a_terminal_nothing_is_shown_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO(), None) == ""
    assert re.fullmatch(r"3/10 \(30 %\) · 4 in flight.*\n", shown(monkeypatch, io.StringIO(), True))


def test_lines_for_a_file_are_ten_seconds_apart() -> None:
    clock, out = Clock(), io.StringIO()
    lines = _progress._LogLines(out, clock)
    for second in range(25):
        clock.now = 100.0 + second
        lines.show(Progress(done=second))
    lines.close()
    assert [line.split(" ")[0] for line in out.getvalue().splitlines()] == ["10", "20", "24"]


def test_what_is_no_display_is_refused() -> None:
    with pytest.raises(TypeError, match="progress must be"):
        Watch(Progress, 1)  # type: ignore[arg-type]
