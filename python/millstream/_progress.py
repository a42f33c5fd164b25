"""How far a run is: what it counts, what follows from that, and a line in the terminal or notebook that shows it.

A run is asked for its counters five times a second, by the loop or a thread of its own; it never reports by itself, so
an item costs nothing. The line is rich's or tqdm's, whichever is there, else one of our own.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from shutil import get_terminal_size
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TextIO, TypeAlias

if TYPE_CHECKING:
    from asyncio import Task
    from types import TracebackType

    from millstream.types import ClientStats

INTERVAL_S = 0.2
"""Between two looks at the counters."""

_WINDOW_S = 15.0
"""Speeds are those of the last so many seconds."""

_LOG_INTERVAL_S = 10.0
"""Between two lines where there is no terminal to draw in."""

WaitCause: TypeAlias = Literal["rate", "concurrency", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is, at one moment.

    Attributes:
        done: Items that were answered.
        failed: Items that ended in an error.
        in_flight: Items that were begun and have not ended.
        total: Items of the whole run; None while that is not known.
        skipped: Items of them that an earlier run had done.
        prompt_tokens: Tokens of prompts, as the servers counted them.
        completion_tokens: Tokens of answers, likewise.
        cost: Dollars for the tokens whose price is known, those of an earlier run included; None if no price is known.
        unpriced: Answers whose price is not known, so that they are not in ``cost``.
        elapsed: Seconds since the run began.
        items_per_second: Items that ended, over the last 15 s.
        tokens_per_second: Tokens of prompts and answers, over the last 15 s.
        eta: Seconds to the end at that speed; None while it cannot be known.
        projected_cost: Dollars for the whole run, if the rest is like what is done; None while it cannot be known, or
            where a price is not.
        waiting: What items wait for: ``"rate"`` (a limit of requests or tokens), ``"concurrency"`` (a place in
            flight) or ``"server"`` (a wait that it asked for, or another attempt). None: for nothing but answers.
    """

    done: int = 0
    failed: int = 0
    in_flight: int = 0
    total: int | None = None
    skipped: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    unpriced: int = 0
    elapsed: float = 0.0
    items_per_second: float | None = None
    tokens_per_second: float | None = None
    eta: float | None = None
    projected_cost: float | None = None
    waiting: WaitCause | None = None

    @property
    def ended(self) -> int:
        """Items that were answered or failed."""
        return self.done + self.failed

    @property
    def left(self) -> int | None:
        """Items that have not ended; None while the total is not known."""
        return None if self.total is None else max(self.total - self.skipped - self.ended, 0)

    def __str__(self) -> str:
        """The counters in one line."""
        return " · ".join(_parts(self))


class Meter:
    """Makes speeds, the time that is left and the projected cost from counters."""

    __slots__ = ("_clock", "_seen", "_start", "_stats")

    def __init__(self, stats: Callable[[], ClientStats] | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._stats = stats
        self._seen: deque[tuple[float, int, int]] = deque()

    def measure(self, counters: Progress) -> Progress:
        """The counters and what follows from them."""
        now = self._clock()
        tokens = counters.prompt_tokens + counters.completion_tokens
        # The first look is where speeds begin: tokens of an earlier run may be in it.
        self._seen.append((now, counters.ended, tokens))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _WINDOW_S:
            self._seen.popleft()
        then, ended_then, tokens_then = self._seen[0]
        seconds = now - then
        rate = (counters.ended - ended_then) / seconds if seconds > 0 else None
        left = counters.left
        return replace(
            counters,
            elapsed=now - self._start,
            items_per_second=rate,
            tokens_per_second=(tokens - tokens_then) / seconds if seconds > 0 else None,
            eta=0.0 if left == 0 else left / rate if left is not None and rate else None,
            projected_cost=_projected(counters),
            waiting=None if self._stats is None or left == 0 else wait_cause(self._stats()),
        )


def _projected(counters: Progress) -> float | None:
    left, ended = counters.left, counters.ended + counters.skipped
    if left is None or counters.cost is None or counters.unpriced or not ended:
        return None
    return counters.cost * (1 + left / ended)


def wait_cause(stats: ClientStats) -> WaitCause | None:
    """What most of a client's requests wait for now."""
    limiters = [stats.limiter, *(lane.limiter for lane in stats.lanes)]
    rate = sum(limiter.waiting for limiter in limiters if limiter is not None)
    window = stats.concurrency.waiting
    server = max(stats.queued - rate - window, 0)
    if rate or server:
        return "rate" if rate >= server else "server"
    # No more of a batch is begun than may be in flight, so nothing need wait for the window to be full.
    return "concurrency" if window or stats.concurrency.in_flight >= stats.concurrency.limit else None


# ---- what is shown ----

Show: TypeAlias = bool | Callable[[Progress], object] | None
"""What ``progress=`` takes, see `Watch`."""


class Watch:
    """Shows a run while it is watched: ``async with`` in its loop, or ``with`` by a thread.

    Args:
        counters: The run's counters; it may leave what `Meter` finds out.
        show: True: a line, in the terminal or the notebook, and elsewhere one on stderr each 10 s. None: the same, but
            nothing where there is neither terminal nor notebook. False: nothing. A function: called five times a second
            with a `Progress`, and once more at the end; with ``with`` from another thread.
        stats: The client's, to tell what is waited for.
    """

    __slots__ = ("_counters", "_meter", "_stop", "_task", "_thread", "_view")

    def __init__(
        self, counters: Callable[[], Progress], show: Show = None, *, stats: Callable[[], ClientStats] | None = None
    ) -> None:
        self._counters = counters
        self._meter = Meter(stats)
        self._view = _view(show)
        self._stop = threading.Event()
        self._task: Task[None] | None = None
        self._thread: threading.Thread | None = None

    def tick(self) -> None:
        """Look at the counters and show them."""
        if self._view is not None:
            try:
                self._view.show(self._meter.measure(self._counters()))
            except Exception as error:
                # What was paid for must not be lost by a display.
                self._view = None
                warnings.warn(f"the progress display failed and is off: {error!r}", RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """Show the end."""
        self.tick()
        if self._view is not None:
            self._view.close()
            self._view = None

    async def __aenter__(self) -> Self:
        if self._view is not None:
            from asyncio import get_running_loop  # not at the top, see `millstream._bridge._running_loop`

            self._task = get_running_loop().create_task(self._tick_in_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.close()

    def __enter__(self) -> Self:
        if self._view is not None:
            self._thread = threading.Thread(target=self._tick_in_thread, name="millstream-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
        self.close()

    async def _tick_in_loop(self) -> None:
        from asyncio import sleep

        while self._view is not None:
            self.tick()
            await sleep(INTERVAL_S)

    def _tick_in_thread(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.tick()


class _View(Protocol):
    def show(self, progress: Progress) -> None: ...
    def close(self) -> None: ...


class _Callback:
    """A function of the user's."""

    def __init__(self, function: Callable[[Progress], object]) -> None:
        self._function = function

    def show(self, progress: Progress) -> None:
        self._function(progress)

    def close(self) -> None:
        pass


class _RichLine:
    """A bar of rich's."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._bars = Progress(
            BarColumn(bar_width=12),
            # In a narrow terminal it goes on in the next line.
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=False)),
            console=Console(stderr=True),
            auto_refresh=False,
            redirect_stdout=False,
        )
        self._bar = self._bars.add_task("", total=None)
        self._bars.start()

    def show(self, progress: Progress) -> None:
        ended = progress.ended + progress.skipped
        self._bars.update(self._bar, total=progress.total, completed=ended, description=str(progress))
        self._bars.refresh()

    def close(self) -> None:
        self._bars.stop()


class _TqdmLine:
    """A bar of tqdm's, in a notebook too."""

    def __init__(self) -> None:
        from importlib import import_module

        self._bar: Any = import_module("tqdm.auto").tqdm(total=None, file=sys.stderr, dynamic_ncols=True)

    def show(self, progress: Progress) -> None:
        # The counts and the bar are tqdm's own.
        self._bar.total = progress.total
        self._bar.n = progress.ended + progress.skipped
        self._bar.set_postfix_str(" · ".join(_parts(progress)[1:]), refresh=True)

    def close(self) -> None:
        self._bar.close()


class _PlainLine:
    """One line that is written over and over."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, progress: Progress) -> None:
        # A line that is longer than the terminal would be written under itself.
        width = get_terminal_size().columns - 1
        self._out.write(f"\r{str(progress)[:width]}\x1b[K")
        self._out.flush()

    def close(self) -> None:
        self._out.write("\n")
        self._out.flush()


class _LogLines:
    """A new line now and then, for files."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = monotonic) -> None:
        self._out = out
        self._clock = clock
        self._next = clock() + _LOG_INTERVAL_S
        self._last: Progress | None = None

    def show(self, progress: Progress) -> None:
        self._last = progress
        if self._clock() >= self._next:
            self._next = self._clock() + _LOG_INTERVAL_S
            self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        if self._last is not None:
            self._out.write(f"{self._last}\n")
            self._out.flush()
            self._last = None


def _view(show: Show) -> _View | None:
    if callable(show):
        return _Callback(show)
    if show is False:
        return None
    if show is not None and show is not True:
        raise TypeError(f"progress must be True, False, None or a function, not {type(show).__name__}")
    notebook = _in_notebook()
    if not notebook and not sys.stderr.isatty():
        return None if show is None else _LogLines(sys.stderr)
    # In a notebook tqdm draws in place with ipywidgets or without, rich only with them.
    for line in (_TqdmLine, _RichLine) if notebook else (_RichLine, _TqdmLine):
        try:
            return line()
        except ImportError:
            continue
    return _PlainLine(sys.stderr)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


# ---- words ----

_CAUSES = {"rate": "waits for the rate limit", "concurrency": "full window", "server": "waits for the server"}


def _parts(progress: Progress) -> list[str]:
    ended = progress.ended + progress.skipped
    parts = [f"{ended:,}"]
    if progress.total:
        parts = [f"{ended:,}/{progress.total:,} ({100 * ended // progress.total} %)"]
    if progress.skipped:
        parts.append(f"{progress.skipped:,} before")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    parts.append(f"{progress.in_flight:,} in flight")
    if progress.items_per_second is not None:
        parts.append(f"{quantity(progress.items_per_second)}/s")
    if progress.tokens_per_second:
        parts.append(f"{quantity(progress.tokens_per_second)} tokens/s")
    if progress.eta:
        parts.append(f"{duration(progress.eta)} left")
    if progress.waiting is not None:
        parts.append(_CAUSES[progress.waiting])
    if money := _money(progress):
        parts.append(money)
    return parts


def _money(progress: Progress) -> str:
    if progress.cost is None:
        return "cost unknown" if progress.unpriced else ""
    spent = dollars(progress.cost)
    if progress.unpriced:
        return f"{spent} + {progress.unpriced:,} at unknown prices"
    projected = progress.projected_cost
    return spent if not projected or not progress.left else f"{spent} of about {dollars(projected)}"


def dollars(amount: float | None) -> str:
    """An amount in words; small ones with their first two digits."""
    if amount is None:
        return "unknown"
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.4f}" if amount >= 0.01 else f"${amount:.2g}" if amount >= 0.0001 else f"${amount:.6f}"


def duration(seconds: float) -> str:
    """So many seconds as ``3:25`` or ``26:03:25``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def quantity(number: float) -> str:
    """A number of three digits or so: ``0.42``, ``41.2``, ``12.3k``, ``3.2M``; whole if it is an int."""
    for least, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= least:
            scale = 1e3 if unit == "k" else least
            return f"{number / scale:.1f}{unit}"
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
