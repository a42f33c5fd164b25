"""One run: items from a source into the engine, results out of it, in pages.

All of it is awaited. Who blocks has it awaited in a thread of its own (`Portal`), which therefore works inside a
running event loop, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar

from millstream._bridge import wait
from millstream._progress import Progress, Watch
from millstream._results import Tally
from millstream._structured import Tries, _Unfit, value_of
from millstream.exceptions import BatchStoppedError, MillstreamError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from millstream._asks import Asker
    from millstream._millstream import BatchResult, NativeBatch, NativeManner
    from millstream._progress import Show
    from millstream._results import BatchSummary
    from millstream._sources import Source
    from millstream._structured import ResponseFormat
    from millstream.types import ClientStats

T = TypeVar("T")

# Items that go in, and results that come out, between two turns of the event loop.
_PAGE = 256


class Validation:
    """Reads answers as values of a type, and asks again for those that do not fit."""

    def __init__(self, form: ResponseFormat[Any], retries: int, asker: Asker, native: NativeBatch) -> None:
        self._form = form
        self._retries = retries
        self._asker = asker
        self._native = native
        # Of the items that are asked again: the tries, how they are asked, and the results so far.
        self._open: dict[int, tuple[Tries[Any], NativeManner | None, list[BatchResult]]] = {}

    def judge(self, result: BatchResult) -> BatchResult | None:
        """The result with its value or with why it has none; None if the item is asked again."""
        first = result.index not in self._open
        if result.response is None:
            earlier = [] if first else self._open.pop(result.index)[2]
            return result._judged(parsed=None, error=None, earlier=earlier)
        if first:
            # Most fit at once, and a template of the user's is not called again for them.
            with contextlib.suppress(MillstreamError, _Unfit):
                return result._judged(parsed=value_of(self._form, result.response), error=None, earlier=[])
        error: MillstreamError
        earlier = []
        try:
            tries, manner, earlier = self._begin(result) if first else self._open.pop(result.index)
            tries.take(result.response)
        except MillstreamError as unfit:
            # Its traceback would hold the page.
            error = unfit.with_traceback(None)
        else:
            if not tries.open:
                return result._judged(parsed=tries.result, error=None, earlier=earlier)
            if self._native.again(result, tries.prompt, manner):
                self._open[result.index] = (tries, manner, [*earlier, result])
                return None
            error = BatchStoppedError("the run was stopped before this item had an answer that fits; run it again")
            error.reason = self._native.stopped
        error.index = result.index
        self._native.reject()
        return result._judged(parsed=None, error=error, earlier=earlier)

    def _begin(self, result: BatchResult) -> tuple[Tries[Any], NativeManner | None, list[BatchResult]]:
        prompt, manner = self._asker.again(result.input, self._native)
        return Tries(value_of, self._form, prompt, self._retries), manner, []


class Run:
    """A run that is under way."""

    def __init__(
        self,
        native: NativeBatch,
        asker: Asker,
        source: Source,
        *,
        on_error: str,
        validation: Validation | None,
        show: Show,
        stats: Callable[[], ClientStats],
        has_prices: bool,
    ) -> None:
        self._native = native
        self._asker = asker
        self._source = source
        self._on_error = on_error
        self._validation = validation
        self._has_prices = has_prices
        self._watch = Watch(self.counters, show, stats=stats)
        self._begun = monotonic()
        self._ended: float | None = None
        self._tally = Tally()
        self._submitted = 0
        self._left: list[Any] = []
        self._is_fed = False
        self._is_over = False
        self._is_stopping = False
        self._feeder: asyncio.Task[None] | None = None
        self._fault: BaseException | None = None

    # ---- in ----

    def feed(self) -> None:
        """Begin to read the source."""
        self._feeder = asyncio.get_running_loop().create_task(self._feed())

    async def _feed(self) -> None:
        try:
            while (items := await self._source.read(_PAGE)) and await self.submit(items):
                pass
        except asyncio.CancelledError:
            raise
        except BaseException as fault:
            self._fault = fault
            self._native.abort()
        finally:
            self.close()

    async def read(self, count: int) -> list[Any]:
        """So many items of the source; fewer at its end, or if the run is over before."""
        items: list[Any] = []

        async def fill() -> None:
            while len(items) < count and (page := await self._source.read(count - len(items))):
                items.extend(page)

        await self.unless_over(fill())
        return items

    async def submit(self, items: list[Any]) -> bool:
        """Hand in items as there is room; False once the run is stopped."""
        entries = self._asker.entries(items, self._native)
        try:
            while entries:
                taken = None if self._native.stopped is not None else self._native.submit(entries)
                if taken is None:
                    return False
                self._submitted += taken
                del entries[:taken]
                if entries:
                    await wait(self._native.room)
        finally:
            # Stopped, or cancelled since the run is over: what is in hand has its results, too.
            self._left += entries
        return True

    def close(self) -> None:
        """No more items will come."""
        self._is_fed = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        # An answer that does not fit is asked again, so the run is open until all have ended.
        if self._is_fed and (self._validation is None or self._tally.total >= self._submitted):
            self._native.close()

    # ---- out ----

    async def page(self) -> list[BatchResult]:
        """The next results, at least one; none at the end."""
        while not self._is_over:
            page = await self._next()
            if page is None:
                # Not a wait, but the other tasks' turn.
                await asyncio.sleep(0)
                continue
            if self._validation is not None:
                page = [judged for result in page if (judged := self._validation.judge(result)) is not None]
            if page := self._checked(page):
                return page
        return []

    async def _next(self) -> list[BatchResult] | None:
        if self._fault is not None:
            raise self._fault
        page = self._native.take(_PAGE)
        if page is None:
            await wait(self._native.ready)
            page = self._native.take(_PAGE)
        else:
            await asyncio.sleep(0)
        if self._fault is not None:
            raise self._fault
        if page == []:
            await self._rest()
            page = self._native.give_up(self._left)
            self._left = []
            self._is_over = True
        return page

    def _checked(self, page: list[BatchResult]) -> list[BatchResult]:
        """Counts results, and does with failed ones what the user wants."""
        self._tally.add(page)
        self._source.done(len(page))
        self._close_if_done()
        if self._on_error == "return" or all(result.ok for result in page):
            return page
        if self._on_error == "raise":
            self._fault = next(result.error for result in page if result.error is not None)
            self._native.abort()
            # What came with it is paid for, and goes out before it.
            answered = [result for result in page if result.ok]
            if not answered:
                raise self._fault
            return answered
        if self._on_error == "skip":
            return [result for result in page if result.ok]
        return [result if result.ok else result._silenced() for result in page]

    async def collect(self, count: int) -> list[BatchResult]:
        """Results until so many items have ended, or all have."""
        results: list[BatchResult] = []
        wanted = self._tally.total + count
        while self._tally.total < wanted and (page := await self.page()):
            results += page
        return results

    async def unless_over(self, work: Coroutine[Any, Any, None]) -> bool:
        """Await ``work`` while no item is under way; False, and ``work`` is cancelled, if the run is over before."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(wait(self._native.ready))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                return False
            await tasks[0]
            return True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _rest(self) -> None:
        """Read what is known of the source and never went in: each of its items has a result."""
        if self._feeder is not None and not self._feeder.done():
            self._feeder.cancel()
            await asyncio.wait([self._feeder])
        if self._native.stopped is not None:
            self._left += self._asker.entries(self._source.rest(), self._native)

    # ---- how it stands ----

    @property
    def ended(self) -> int:
        """Items that have ended."""
        return self._tally.total

    def counters(self) -> Progress:
        """How far it is."""
        done, failed, in_flight, prompt_tokens, completion_tokens, cost, unpriced = self._native.progress()
        return Progress(
            done=done,
            failed=failed,
            in_flight=in_flight,
            total=self._source.total,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost=cost if self._has_prices and (cost > 0 or not unpriced) else None,
            unpriced=unpriced,
            elapsed=(self._ended or monotonic()) - self._begun,
        )

    def summary(self) -> BatchSummary:
        """What it came to so far."""
        progress = self.counters()
        return self._tally.summary(progress, progress.elapsed, self._native.stopped)

    def stop(self, grace: float) -> None:
        """Begin no further item; the second time end what is on the wire, too."""
        if self._is_over or self._ended is not None:
            return
        self._native.stop(0.0 if self._is_stopping else grace)
        self._is_stopping = True

    # ---- from when to when ----

    def abort(self) -> None:
        """End it from wherever that is noticed: connections are closed, and the source is left alone."""
        self._native.abort()
        self._source.close()
        if self._ended is None:
            self._ended = monotonic()
        feeder = self._feeder
        if feeder is not None and not feeder.done():
            with contextlib.suppress(RuntimeError):
                feeder.get_loop().call_soon_threadsafe(feeder.cancel)

    async def __aenter__(self) -> Self:
        self._begun = monotonic()
        self._native.start()
        await self._watch.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
        feeder, self._feeder = self._feeder, None
        if feeder is not None:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)
        await self._watch.__aexit__(kind, error, trace)


class AsyncBatchStream(AsyncIterator["BatchResult"]):
    """Results as they come: an async iterator, and an async context manager.

    Nothing is sent before it is first read. Leaving it early in any way (``break``, `aclose`, a cancelled task, garbage
    collection) ends what is in flight and closes the connections.
    """

    __slots__ = ("__weakref__", "_begin", "_is_waiting", "_page", "_run")

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, Run]]) -> None:
        self._begin: Callable[[], Coroutine[Any, Any, Run]] | None = begin
        self._run: Run | None = None
        self._page: Iterator[BatchResult] = iter(())
        self._is_waiting = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BatchResult:
        for result in self._page:
            return result
        page = await self._next_page()
        self._page = iter(page)
        for result in self._page:
            return result
        raise StopAsyncIteration

    async def _next_page(self) -> list[BatchResult]:
        if self._is_waiting:
            raise RuntimeError("another task is reading this stream; one can at a time")
        self._is_waiting = True
        try:
            if self._begin is not None:
                begin, self._begin = self._begin, None
                self._run = await begin()
                await self._run.__aenter__()
                self._run.feed()
            page = await self._run.page() if self._run is not None else []
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._is_waiting = False
        if not page:
            await self.aclose()
        return page

    def summary(self) -> BatchSummary | None:
        """What the run came to so far; None before it is first read."""
        return None if self._run is None else self._run.summary()

    async def aclose(self) -> None:
        """End the run. May be called again."""
        self._begin = None
        self._page = iter(())
        if self._run is not None:
            await self._run.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        run: Run | None = getattr(self, "_run", None)
        if run is not None:
            run.abort()


class BatchStream(Iterator["BatchResult"]):
    """Results as they come: an iterator, and a context manager.

    Nothing is sent before it is first read. Leaving it early in any way (``break``, `close`, an exception, garbage
    collection) ends what is in flight and closes the connections.
    """

    __slots__ = ("__weakref__", "_page", "_portal", "_stream")

    def __init__(self, stream: AsyncBatchStream) -> None:
        self._stream = stream
        self._portal: Portal | None = None
        self._page: Iterator[BatchResult] = iter(())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BatchResult:
        for result in self._page:
            return result
        if self._portal is None:
            self._portal = Portal()
        try:
            page = self._portal.call(self._stream._next_page())
        except BaseException:
            self.close()
            raise
        self._page = iter(page)
        for result in self._page:
            return result
        self.close()
        raise StopIteration

    def summary(self) -> BatchSummary | None:
        """What the run came to so far; None before it is first read."""
        return self._stream.summary()

    def close(self) -> None:
        """End the run. May be called again."""
        self._page = iter(())
        if self._portal is not None and not self._portal.is_closed:
            self._portal.call(self._stream.aclose())
            self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        portal: Portal | None = getattr(self, "_portal", None)
        if portal is not None:
            self._stream.__del__()
            portal.close(wait=False)


class Portal:
    """An event loop in a thread of its own, for whoever blocks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="millstream-blocking", daemon=True)
        self._thread.start()
        self.is_closed = False

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Have it awaited there, and wait for it; what interrupts the wait cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, *, wait: bool = True) -> None:
        """End the thread."""
        if not self.is_closed:
            self.is_closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        if wait:
            self._thread.join()


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """Have ``work`` awaited in another thread."""
    portal = Portal()
    try:
        return portal.call(work)
    finally:
        portal.close()
