"""Time that does not really pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream._bridge import wait
from millstream._millstream import NativeVirtualClock

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class VirtualClock:
    """A clock on which minutes of limits, retries and latencies take a moment, and always the same number of seconds.

    While it is active, all of millstream in this process runs on it: clients, `RateLimiter` and every `MockServer`
    started inside. Time stands still while anything happens (a request on a socket, Python between two calls) and jumps
    to the next moment at which something will: the end of a wait for a limit, of a backoff, of a server's latency. It
    passes only while a call waits for it.

        with VirtualClock() as clock, MockServer(requests_per_minute=600) as server:
            ...  # 1,800 prompts through a client with RateLimiter(requests_per_minute=600)
            assert clock.now == pytest.approx(120, rel=0.01)

    Clients and limiters may be made before it; inside they begin with new connections and full buckets, and so they do
    again after it. A server that was started before, or a real one, answers in real time: the clock waits for it.
    There is one at a time. Calls that are under way when it is left end with an error.

    ``asyncio.sleep``, ``asyncio.timeout`` and ``time.sleep`` are not millstream's and take real time: use `sleep` and
    `advance`. What several threads do at once is not repeatable.

    Args:
        seed: Seed of every random choice (jitter), so that the same calls take the same time again.
    """

    __slots__ = ("_native",)

    def __init__(self, *, seed: int = 0) -> None:
        self._native = NativeVirtualClock(seed)

    @property
    def now(self) -> float:
        """Seconds of the clock since it was entered; once it was left, until then."""
        return self._native.now()

    def advance(self, seconds: float) -> None:
        """Let time pass, blocking until all that is due has begun. In a coroutine use `sleep`.

        Raises:
            ValueError: ``seconds`` is negative.
            RuntimeError: The clock is not active.
        """
        self._native.sleep(None, seconds)

    async def sleep(self, seconds: float) -> None:
        """As ``asyncio.sleep``, on this clock.

        Raises:
            ValueError: ``seconds`` is negative.
            RuntimeError: The clock is not active.
        """
        await wait(self._native.sleep, seconds)

    def __enter__(self) -> Self:
        """Make it the clock of this process.

        Raises:
            RuntimeError: Another one is active.
        """
        self._native.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._native.leave()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._native.leave()

    def __repr__(self) -> str:
        return f"<VirtualClock at {self.now:.3f} s>"
