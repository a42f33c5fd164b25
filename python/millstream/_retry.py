"""Whether and when a failed attempt is made again: for a client, and for any function of yours."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar, TypeVarTuple

from millstream._arguments import INTEGER, KINDS, check, spelt_class
from millstream._millstream import NativeRetryPolicy
from millstream.exceptions import ConfigurationError, MillstreamError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# A client may leave `max_retries` to its policy.
_KINDS = {**KINDS, "max_retries": INTEGER._replace(optional=False)}

Jitter: TypeAlias = Literal["full", "equal", "none"]
RetryOn: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
OnRetry: TypeAlias = Callable[[Exception, int, float], object]


@spelt_class
@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and when a client makes a failed attempt again. Frozen; clients may share one.

    A failed attempt is made again if its error may pass: 408, 425, 429, 5xx, 409 once, no complete answer, or a 2xx
    that is none. Where the server sends ``x-should-retry``, that decides. A used-up quota is never retried. The k-th
    retry, counted from 0, waits ``min(max_delay, base_delay * exponential_base ** k)`` seconds, or less by ``jitter``.
    Where the server asks for a wait it is that, never less, and up to a fifth more (at most 30 s).

    Attributes:
        max_retries: Attempts after the first.
        max_rate_limit_retries: Attempts after a refusal for load (429, 503, 529), counted apart from those after
            other faults. Default: in a batch up to 150, each waited for outside the timeout if it is a 429; in a single
            call ``max_retries`` counts both together.
        statuses: HTTP statuses to retry in place of the usual ones, each from 400 to 599.
        base_delay: Seconds, most before the first retry.
        max_delay: Seconds, most before any.
        exponential_base: What each ceiling is times the one before it, at least 1.
        jitter: ``"full"``: U(0, ceiling); ``"equal"``: U(ceiling / 2, ceiling); ``"none"``: the ceiling itself.
        respect_retry_after: Keep the waits that servers ask for (``Retry-After``, ``retry-after-ms``).
        longest_retry_after: Seconds; a server that asks for more is not waited for, and the call fails at once.
        connection_faults: Retry what got no complete answer (refused, reset, cut, over a phase's timeout).
        invalid_responses: Retry a 2xx that is not an answer.

    Raises:
        ConfigurationError: A number is not valid; its name is in the text.
    """

    max_retries: int = 2
    max_rate_limit_retries: int | None = None
    statuses: Collection[int] | None = None
    base_delay: float = 0.5
    max_delay: float = 8.0
    exponential_base: float = 2.0
    jitter: Jitter = "full"
    respect_retry_after: bool = True
    longest_retry_after: float = 120.0
    connection_faults: bool = True
    invalid_responses: bool = True

    def __post_init__(self) -> None:
        check({each.name: getattr(self, each.name) for each in fields(self) if each.name != "jitter"}, _KINDS)
        if self.statuses is not None:
            object.__setattr__(self, "statuses", frozenset(self.statuses))
        self._native()

    def _native(self) -> NativeRetryPolicy:
        return NativeRetryPolicy(
            max_retries=self.max_retries,
            max_rate_limit_retries=self.max_rate_limit_retries,
            statuses=None if self.statuses is None else list(self.statuses),
            base_delay=self.base_delay,
            max_delay=self.max_delay,
            exponential_base=self.exponential_base,
            jitter=self.jitter,
            respect_retry_after=self.respect_retry_after,
            longest_retry_after=self.longest_retry_after,
            connection_faults=self.connection_faults,
            invalid_responses=self.invalid_responses,
        )


class _Schedule:
    """What `retry_with_backoff` and `retrying` were told."""

    __slots__ = ("attempts", "on_retry", "policy", "retry_on")

    def __init__(
        self,
        max_retries: int,
        base_delay: float,
        max_delay: float,
        exponential_base: float,
        jitter: bool | Jitter,
        retry_on: RetryOn,
        on_retry: OnRetry | None,
    ) -> None:
        check({"max_retries": max_retries, "retry_on": retry_on, "on_retry": on_retry}, _KINDS)
        if max_retries < 1:
            raise ConfigurationError(f"max_retries counts attempts here, so it must be at least 1, not {max_retries}")
        self.attempts = max_retries
        self.policy = RetryPolicy(
            base_delay=base_delay,
            max_delay=max_delay,
            exponential_base=exponential_base,
            jitter=jitter if isinstance(jitter, str) else "equal" if jitter else "none",
        )._native()
        self.retry_on = retry_on
        self.on_retry = on_retry

    def delay(self, error: Exception, attempt: int) -> float | None:
        """Seconds until the attempt after this one, counted from 1; None to raise ``error``."""
        if attempt >= self.attempts or not self._is_retried(error):
            return None
        delay = self.policy.wait(attempt - 1, error.retry_after if isinstance(error, MillstreamError) else None)
        if delay is not None and self.on_retry is not None:
            self.on_retry(error, attempt, delay)
        return delay

    def _is_retried(self, error: Exception) -> bool:
        if isinstance(error, MillstreamError) and not error.retryable:
            return False
        retry_on = self.retry_on
        return isinstance(error, retry_on) if isinstance(retry_on, (type, tuple)) else retry_on(error)

    async def carry_async(self, call: Callable[[], Awaitable[T]]) -> T:
        import asyncio  # not at the top, see `millstream._bridge.wait`

        attempt = 1
        while True:
            try:
                return await call()
            except Exception as error:
                delay = self.delay(error, attempt)
                if delay is None:
                    raise
            await asyncio.sleep(delay)
            attempt += 1

    def carry(self, call: Callable[[], T]) -> T:
        attempt = 1
        while True:
            try:
                return call()
            except Exception as error:
                delay = self.delay(error, attempt)
                if delay is None:
                    raise
            time.sleep(delay)
            attempt += 1


async def retry_with_backoff(
    func: Callable[[*Ts], Awaitable[T]],
    *args: *Ts,
    max_retries: int = 3,
    base_delay: float = 1.0,
    max_delay: float = 60.0,
    exponential_base: float = 2.0,
    jitter: bool | Jitter = True,
    retry_on: RetryOn = Exception,
    on_retry: OnRetry | None = None,
) -> T:
    """Await ``func(*args)``, and again after an error, with exponential backoff.

    For anything but this package's clients: those retry by themselves, and retries within retries multiply.

    Args:
        func: Any async function, or whatever else gives an awaitable. For keyword arguments give a lambda.
        *args: Its arguments.
        max_retries: Attempts in all, the first included.
        base_delay: Seconds, ceiling of the first wait.
        max_delay: Seconds, ceiling of every wait.
        exponential_base: What each ceiling is times the one before it.
        jitter: True waits U(0.5, 1) times the ceiling, False the ceiling itself; or a name of `RetryPolicy.jitter`.
        retry_on: Exceptions to retry: a class, a tuple of classes, or a function that says whether. Of this package's
            own errors those with ``retryable`` False are never retried, and ``retry_after`` is waited out.
        on_retry: Called before each wait with the error, the number of the failed attempt (from 1) and the seconds to
            wait.

    Returns:
        What ``func`` gives.

    Raises:
        Exception: What the last attempt raised, at once and as it is. Cancelling goes through untouched.
        ConfigurationError: A number is not valid; its name is in the text.
    """
    schedule = _Schedule(max_retries, base_delay, max_delay, exponential_base, jitter, retry_on, on_retry)
    return await schedule.carry_async(lambda: func(*args))


def retrying(
    *,
    max_retries: int = 3,
    base_delay: float = 1.0,
    max_delay: float = 60.0,
    exponential_base: float = 2.0,
    jitter: bool | Jitter = True,
    retry_on: RetryOn = Exception,
    on_retry: OnRetry | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that every call of it is retried; the arguments are those of `retry_with_backoff`.

    A plain function blocks its thread while it waits; Ctrl-C ends the wait.

    Raises:
        ConfigurationError: A number is not valid; its name is in the text.
        TypeError: The function is a generator, which cannot be begun again.
    """
    schedule = _Schedule(max_retries, base_delay, max_delay, exponential_base, jitter, retry_on, on_retry)

    def decorate(func: Callable[P, T]) -> Callable[P, T]:
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise TypeError(f"{func.__qualname__} is a generator: what it has given cannot be taken back")
        if inspect.iscoroutinefunction(func):

            @functools.wraps(func)
            async def retried_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await schedule.carry_async(lambda: func(*args, **kwargs))

            return retried_async  # type: ignore[return-value]  # T is its coroutine

        @functools.wraps(func)
        def retried(*args: P.args, **kwargs: P.kwargs) -> T:
            return schedule.carry(lambda: func(*args, **kwargs))

        return retried

    return decorate
