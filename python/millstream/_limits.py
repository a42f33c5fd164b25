"""Requests and tokens per minute, for clients and for anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from millstream._bridge import wait
from millstream._millstream import NativeRateLimiter, Reservation

if TYPE_CHECKING:
    from types import TracebackType


class RateLimiter:
    """Requests per minute and tokens per minute, strictly first come, first served.

    A continuous token bucket per dimension: capacity = limit, refill = limit / 60 s, full at the start. One limiter
    may be shared by clients, threads and event loops; it is one state. A forked process starts with full buckets of
    its own.

    Args:
        requests_per_minute: Most requests per minute. Default: not limited.
        tokens_per_minute: Most tokens per minute, prompt and answer together. Default: not limited.

    Raises:
        ConfigurationError: A limit is not a positive number.
    """

    def __init__(self, *, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._native = NativeRateLimiter(requests_per_minute, tokens_per_minute)
        self._limits = (requests_per_minute, tokens_per_minute)

    async def acquire(self, requests: float = 1, tokens: float = 0) -> Reservation:
        """Wait until ``requests`` and ``tokens`` may go, behind those who came before.

        Args:
            requests: How many requests to take.
            tokens: How many tokens to take, estimated; ``settle`` the reservation once the true number is known.

        Returns:
            What was taken. It stays taken; `Reservation.settle` corrects the tokens.

        Raises:
            InputTooLargeError: More than a whole minute's limit; waiting would never help.
        """
        return await wait(self._native.acquire, requests, tokens)

    def acquire_blocking(self, requests: float = 1, tokens: float = 0) -> Reservation:
        """As `acquire`, blocking the thread (the GIL is released); Ctrl-C ends the wait."""
        return self._native.acquire(None, requests, tokens)

    def try_acquire(self, requests: float = 1, tokens: float = 0) -> Reservation | None:
        """What may go at once and before nobody else; None if it would have to wait.

        Raises:
            InputTooLargeError: More than a whole minute's limit; waiting would never help.
        """
        return self._native.try_acquire(requests, tokens)

    @property
    def waiting(self) -> int:
        """How many acquisitions wait now."""
        return self._native.levels()[2]

    async def __aenter__(self) -> Self:
        """Take one request."""
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was taken stays taken: it is a rate, not a lock."""

    def __enter__(self) -> Self:
        """Take one request, blocking."""
        self.acquire_blocking()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was taken stays taken: it is a rate, not a lock."""

    def __repr__(self) -> str:
        requests, tokens = self._limits
        return f"RateLimiter(requests_per_minute={requests}, tokens_per_minute={tokens})"
