"""Streams: an answer's pieces as they come, and afterwards the whole of it.

The engine reads the socket and queues what came; here all that waits is taken in one go and handed out piece by piece,
so a consumer that is busy pays for one wake-up and not for one a piece.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from millstream._bridge import block, promised
from millstream._millstream import ChatCompletion, Response, StreamEvent
from millstream._millstream import Completion as TextCompletion
from millstream.exceptions import MillstreamError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from millstream._millstream import NativeStream, Usage

T = TypeVar("T")
R = TypeVar("R", bound=ChatCompletion | Response | TextCompletion)


class _Pieces(Generic[T]):
    """What every stream is.

    Where the key is a function, ``start`` makes the stream anew with a key when it is first read; until then ``native``
    stands for it.
    """

    __slots__ = ("__weakref__", "_native", "_pieces", "_start", "_waiting")

    def __init__(self, native: NativeStream, start: Callable[[], Any] | None = None) -> None:
        self._native = native
        self._start = start
        self._pieces: Iterator[T] = iter(())
        self._waiting = False

    @property
    def closed(self) -> bool:
        """Whether it was closed; one that has ended by itself was not."""
        return self._native.closed

    def _started(self, native: NativeStream) -> None:
        """Go on with another, unless it was closed in the meantime."""
        if self._native.closed:
            native.close()
        self._native = native


class _AsyncPieces(_Pieces[T], AsyncIterator[T]):
    __slots__ = ()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        for piece in self._pieces:
            return piece
        if self._waiting:
            raise RuntimeError("another task is reading this stream; one can at a time")
        self._waiting = True
        try:
            if self._start is not None and not self.closed:
                start, self._start = self._start, None
                self._started(await start())
            pieces = self._native.take()
            if pieces is None:
                pieces = await promised(self._native.listen)
            else:
                # Not a wait, but the other tasks' turn: a stream that is faster than its consumer never waits.
                await _turn()
        except BaseException:
            self._native.close()
            raise
        finally:
            self._waiting = False
        self._pieces = iter(pieces)
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the request and close its connection, unless the stream has ended. May be called again."""
        self._native.close()

    close = aclose

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _turn:  # noqa: N801 - it reads like a call
    """One turn of the event loop; what ``asyncio.sleep(0)`` does, of any loop."""

    __slots__ = ()

    def __await__(self) -> Any:
        yield


class _BlockingPieces(_Pieces[T], Iterator[T]):
    __slots__ = ()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        for piece in self._pieces:
            return piece
        if self._waiting:
            raise RuntimeError("another thread is reading this stream; one can at a time")
        self._waiting = True
        try:
            if self._start is not None and not self.closed:
                start, self._start = self._start, None
                self._started(start())
            pieces = block(self._native.next)
        except BaseException:
            self._native.close()
            raise
        finally:
            self._waiting = False
        self._pieces = iter(pieces or ())
        return next(self._pieces)

    def close(self) -> None:
        """End the request and close its connection, unless the stream has ended. May be called again."""
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Answer(_Pieces[T], Generic[T, R]):
    """What is known of the answer of one stream."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The text so far, of the first choice."""
        return self._native.text()

    @property
    def response(self) -> R:
        """The whole answer, as if it had not been streamed: with usage, finish reason and joined tool calls.

        Raises:
            MillstreamError: The stream has not ended, or it failed.
        """
        answer: R | None = self._native.answer()
        if answer is None:
            raise MillstreamError("the stream has not ended well yet; read it to its end, or use get_final()")
        return answer

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the request to the first piece with content; None before it."""
        return self._native.time_to_first_token()

    def __repr__(self) -> str:
        state = "ended" if self._native.answer() else "closed" if self.closed else "open"
        return f"<{type(self).__name__} {state}>"


class _ChatAnswer(_Answer[T, ChatCompletion]):
    """What is known of a chat's, besides."""

    __slots__ = ()

    @property
    def usage(self) -> Usage | None:
        """The tokens, once the stream has ended and if the server counts them."""
        answer = self._native.answer()
        return None if answer is None else answer.usage

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first by the time they took; None before the end, or if the server does not count them."""
        usage, duration = self.usage, self._native.duration()
        if usage is None or not duration or usage.completion_tokens < 2:
            return None
        return (usage.completion_tokens - 1) / duration


class _AsyncAnswer(_AsyncPieces[T], _Answer[T, R]):
    __slots__ = ()

    async def get_final(self) -> R:
        """Read to the end and return the whole answer.

        Raises:
            StreamInterruptedError: The stream broke; its ``partial`` has the text so far.
            APIError: No answer.
        """
        async for _ in self:
            self._pieces = iter(())
        return self.response


class _BlockingAnswer(_BlockingPieces[T], _Answer[T, R]):
    __slots__ = ()

    def get_final(self) -> R:
        """Read to the end and return the whole answer.

        Raises:
            StreamInterruptedError: The stream broke; its ``partial`` has the text so far.
            APIError: No answer.
        """
        for _ in self:
            self._pieces = iter(())
        return self.response


class AsyncStream(_AsyncAnswer[T, ChatCompletion], _ChatAnswer[T]):
    """One answer as it comes: an async iterator of its pieces, and an async context manager.

    Leaving it early in any way (``break``, `aclose`, a cancelled task, garbage collection) closes the connection.
    """

    __slots__ = ()


class Stream(_BlockingAnswer[T, ChatCompletion], _ChatAnswer[T]):
    """One answer as it comes: an iterator of its pieces, and a context manager.

    Leaving it early in any way (``break``, `close`, an exception, garbage collection) closes the connection.
    """

    __slots__ = ()


class AsyncEventStream(_AsyncAnswer[StreamEvent, R]):
    """One answer as it comes: an async iterator of its events, and an async context manager.

    Leaving it early in any way (``break``, `aclose`, a cancelled task, garbage collection) closes the connection.
    """

    __slots__ = ()


class EventStream(_BlockingAnswer[StreamEvent, R]):
    """One answer as it comes: an iterator of its events, and a context manager.

    Leaving it early in any way (``break``, `close`, an exception, garbage collection) closes the connection.
    """

    __slots__ = ()


class AsyncMergedStream(_AsyncPieces[T]):
    """Many answers as they come: an async iterator of pairs of a prompt's index and a piece, and a context manager."""

    __slots__ = ()


class MergedStream(_BlockingPieces[T]):
    """Many answers as they come: an iterator of pairs of a prompt's index and a piece, and a context manager."""

    __slots__ = ()
