"""Limits on requests and tokens, for clients and for anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from millstream._arguments import check, spelt
from millstream._bridge import block, wait
from millstream._millstream import NativeRateLimiter, Reservation
from millstream.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from millstream.types import RateLimiterSnapshot

_Algorithm: TypeAlias = Literal["token_bucket", "sliding_window"]

_WINDOWS = {"second": 1.0, "minute": 60.0, "day": 86400.0}

_PLAIN = {int, float}

# Unit, how many, in how many seconds, how many at once.
_Rule: TypeAlias = tuple[str, float, float, float | None]


class RateLimiter:
    """Limits on requests and tokens, first come, first served.

    Every limit is a token bucket, full at the start: its capacity is the limit, and it refills evenly. With
    ``algorithm="sliding_window"`` no stretch as long as the window ever holds more than the limit. All limits that are
    given hold at once. One limiter may be shared by clients, threads and event loops; it is one state. A forked
    process starts with one of its own, full.

    Who waits is served in order, a heavy one at the head too; a higher ``priority`` goes first, but not before those of
    the next lower one who have waited 30 seconds longer.

    Args:
        requests_per_minute: Most requests per minute. Default: not limited, as for all that follow. Less than one is
            one in a longer time: 0.5 is one in two minutes.
        tokens_per_minute: Most tokens per minute, prompt and answer together.
        input_tokens_per_minute: Most tokens of prompts per minute.
        output_tokens_per_minute: Most tokens of answers per minute.
        requests_per_second: Most requests per second.
        requests_per_day: Most requests per day.
        tokens_per_day: Most tokens per day.
        burst: Most requests at once, at least 1: the capacity of the bucket of the shortest requests limit. Default:
            that limit. Token buckets only.
        algorithm: ``"token_bucket"`` or ``"sliding_window"``.
        calls_per_minute: Another name of ``requests_per_minute``.
        rate: Another name of ``requests_per_second``.
        max_tokens: With ``rate``, another name of ``burst``: the tokens of the *bucket*, not of a language model.
            Prefer ``burst``.

    Raises:
        ConfigurationError: A limit is not a positive number, is given by two of its names, or ``burst`` has no limit to
            belong to.
    """

    @spelt
    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        input_tokens_per_minute: float | None = None,
        output_tokens_per_minute: float | None = None,
        requests_per_second: float | None = None,
        requests_per_day: float | None = None,
        tokens_per_day: float | None = None,
        burst: float | None = None,
        algorithm: _Algorithm = "token_bucket",
        calls_per_minute: float | None = None,
        rate: float | None = None,
        max_tokens: float | None = None,
    ) -> None:
        if max_tokens is not None and rate is None:
            raise ConfigurationError(
                "max_tokens is the burst of rate=; to limit the tokens of a language model, give tokens_per_minute="
            )
        limits = {
            "requests_per_second": _one_of(requests_per_second=requests_per_second, rate=rate),
            "requests_per_minute": _one_of(requests_per_minute=requests_per_minute, calls_per_minute=calls_per_minute),
            "requests_per_day": requests_per_day,
            "tokens_per_minute": tokens_per_minute,
            "tokens_per_day": tokens_per_day,
            "input_tokens_per_minute": input_tokens_per_minute,
            "output_tokens_per_minute": output_tokens_per_minute,
        }
        self._given = _given(limits, _one_of(burst=burst, max_tokens=max_tokens), algorithm)
        self._native = NativeRateLimiter(*_rules(self._given, algorithm))

    @spelt
    def set_limits(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        input_tokens_per_minute: float | None = None,
        output_tokens_per_minute: float | None = None,
        requests_per_second: float | None = None,
        requests_per_day: float | None = None,
        tokens_per_day: float | None = None,
        burst: float | None = None,
        algorithm: _Algorithm = "token_bucket",
    ) -> None:
        """Replace all limits, also for those who wait already.

        A bucket stays as full as it was in proportion, a sliding window keeps what was taken, and a limit that was not
        there begins full. Whoever waits for more than the new limits can ever pass gets an `InputTooLargeError`.

        Args:
            requests_per_minute: As for `RateLimiter`, and so are the others. What is not given is no longer limited.
            tokens_per_minute: Tokens per minute.
            input_tokens_per_minute: Tokens of prompts per minute.
            output_tokens_per_minute: Tokens of answers per minute.
            requests_per_second: Requests per second.
            requests_per_day: Requests per day.
            tokens_per_day: Tokens per day.
            burst: Requests at once.
            algorithm: ``"token_bucket"`` or ``"sliding_window"``.

        Raises:
            ConfigurationError: As for `RateLimiter`; then nothing was changed.
        """
        limits = {
            "requests_per_second": requests_per_second,
            "requests_per_minute": requests_per_minute,
            "requests_per_day": requests_per_day,
            "tokens_per_minute": tokens_per_minute,
            "tokens_per_day": tokens_per_day,
            "input_tokens_per_minute": input_tokens_per_minute,
            "output_tokens_per_minute": output_tokens_per_minute,
        }
        given = _given(limits, burst, algorithm)
        self._native.set_limits(*_rules(given, algorithm))
        self._given = given

    async def acquire(
        self,
        requests: float = 1,
        tokens: float = 0,
        *,
        input_tokens: float = 0,
        output_tokens: float = 0,
        priority: int = 0,
        max_wait: float | None = None,
    ) -> Reservation:
        """Wait until all of it may go, behind those who came before.

        Args:
            requests: How many requests to take.
            tokens: How many tokens to take, estimated; ``settle`` the reservation once the true number is known.
            input_tokens: How many tokens of prompts to take, estimated.
            output_tokens: How many tokens of answers to take, estimated.
            priority: A higher one goes before a lower one; negative is allowed.
            max_wait: Longest wait in seconds. Default: as long as it takes.

        Returns:
            What was taken. It stays taken; `Reservation.settle` corrects the tokens. See `reserve` for one that is
            given back.

        Raises:
            InputTooLargeError: More than the limits could ever let through at once; waiting would never help.
            QueueTimeoutError: It would take longer than ``max_wait`` (raised at once), or did. Also a ``TimeoutError``.
        """
        amounts = _amounts(requests, tokens, input_tokens, output_tokens, priority, max_wait)
        return await wait(self._native.acquire, amounts, priority, max_wait, False)

    def acquire_blocking(
        self,
        requests: float = 1,
        tokens: float = 0,
        *,
        input_tokens: float = 0,
        output_tokens: float = 0,
        priority: int = 0,
        max_wait: float | None = None,
    ) -> Reservation:
        """As `acquire`, blocking the thread (the GIL is released); Ctrl-C ends the wait."""
        amounts = _amounts(requests, tokens, input_tokens, output_tokens, priority, max_wait)
        return block(self._native.acquire, amounts, priority, max_wait, False)

    def try_acquire(
        self, requests: float = 1, tokens: float = 0, *, input_tokens: float = 0, output_tokens: float = 0
    ) -> Reservation | None:
        """What may go at once and before nobody else; None if it would have to wait.

        Raises:
            InputTooLargeError: More than the limits could ever let through at once; waiting would never help.
        """
        return self._native.try_acquire(_amounts(requests, tokens, input_tokens, output_tokens))

    def reserve(
        self,
        requests: float = 1,
        tokens: float = 0,
        *,
        input_tokens: float = 0,
        output_tokens: float = 0,
        priority: int = 0,
        max_wait: float | None = None,
    ) -> PendingReservation:
        """What is given back if the work it was for does not happen.

        Use it with ``async with`` or ``with``, or await it::

            async with limiter.reserve(tokens=800) as reservation:
                answer = await ask()
                reservation.settle(answer.usage.total_tokens)

        A block that ends with an error gives back what was taken, unless ``commit`` or ``settle`` was called: commit
        as the request goes out, since providers count failed requests too. A block that ends well keeps it. Awaited,
        it is a `Reservation` that is given back when it is dropped before either was called.

        Args:
            requests: As for `acquire`, and so are the others.
            tokens: Tokens, estimated.
            input_tokens: Tokens of prompts, estimated.
            output_tokens: Tokens of answers, estimated.
            priority: A higher one goes first.
            max_wait: Longest wait in seconds.

        Raises:
            InputTooLargeError: On entering, as for `acquire`.
            QueueTimeoutError: On entering, as for `acquire`.
        """
        amounts = _amounts(requests, tokens, input_tokens, output_tokens, priority, max_wait)
        return PendingReservation(self._native, amounts, priority, max_wait)

    def estimated_wait(
        self, requests: float = 1, tokens: float = 0, *, input_tokens: float = 0, output_tokens: float = 0
    ) -> float:
        """Seconds that it would wait if it came now, behind all who wait; 0.0 if it could go at once."""
        return self._native.estimated_wait(_amounts(requests, tokens, input_tokens, output_tokens))

    def snapshot(self) -> RateLimiterSnapshot:
        """Every limit with its level, and how many wait."""
        from millstream.types import RateLimiterSnapshot  # not at the top, see `millstream.__getattr__`

        return RateLimiterSnapshot._of(*self._native.snapshot())

    @property
    def waiting(self) -> int:
        """How many acquisitions wait now."""
        return self._native.snapshot()[1]

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
        return f"RateLimiter({', '.join(f'{name}={value!r}' for name, value in self._given.items())})"


class PendingReservation:
    """What `RateLimiter.reserve` gives: enter it or await it, once."""

    __slots__ = ("_amounts", "_max_wait", "_native", "_priority", "_reservation")

    def __init__(
        self,
        native: NativeRateLimiter,
        amounts: tuple[float, float, float, float],
        priority: int,
        max_wait: float | None,
    ) -> None:
        self._native = native
        self._amounts = amounts
        self._priority = priority
        self._max_wait = max_wait
        self._reservation: Reservation | None = None

    def __await__(self) -> Generator[object, None, Reservation]:
        """Wait until it may go."""
        return wait(self._native.acquire, self._amounts, self._priority, self._max_wait, True).__await__()

    async def __aenter__(self) -> Reservation:
        """Wait until it may go."""
        self._reservation = await self
        return self._reservation

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what was taken, or give it back after an error."""
        self._leave(error)

    def __enter__(self) -> Reservation:
        """Wait until it may go, blocking."""
        self._reservation = block(self._native.acquire, self._amounts, self._priority, self._max_wait, True)
        return self._reservation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what was taken, or give it back after an error."""
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        if self._reservation is None:
            return
        if error is None:
            self._reservation.commit()
        else:
            self._reservation.release()
        self._reservation = None


def _amounts(
    requests: float,
    tokens: float,
    input_tokens: float,
    output_tokens: float,
    priority: int = 0,
    max_wait: float | None = None,
) -> tuple[float, float, float, float]:
    """The amounts as the native module takes them."""
    amounts = (requests, tokens, input_tokens, output_tokens)
    if priority != 0 or max_wait is not None or not _PLAIN.issuperset(map(type, amounts)):
        # Most are plain numbers, and `try_acquire` takes less time than a look at each.
        names = ("requests", "tokens", "input_tokens", "output_tokens", "priority", "max_wait")
        check(dict(zip(names, (*amounts, priority, max_wait), strict=True)))
    return amounts


def _one_of(**spellings: float | None) -> float | None:
    """The value of an argument that has several names."""
    given = {name: value for name, value in spellings.items() if value is not None}
    if len(given) > 1:
        raise ConfigurationError(f"{' and '.join(given)} are two names of the same limit: give one of them")
    return next(iter(given.values()), None)


def _given(limits: dict[str, float | None], burst: float | None, algorithm: str) -> dict[str, float | str]:
    """The arguments that were given, by their own names."""
    if algorithm not in ("token_bucket", "sliding_window"):
        raise ConfigurationError(f'algorithm must be "token_bucket" or "sliding_window", not {algorithm!r}')
    given: dict[str, float | str] = {name: value for name, value in limits.items() if value is not None}
    check({**given, "burst": burst})
    if burst is not None:
        if not any(name.startswith("requests_per_") for name in given):
            raise ConfigurationError("burst is the most requests at once: it needs a limit on requests beside it")
        given["burst"] = burst
    if algorithm != "token_bucket":
        given["algorithm"] = algorithm
    return given


def _rules(given: dict[str, float | str], algorithm: str) -> tuple[list[_Rule], bool]:
    """The limits as the engine takes them. The burst belongs to the first on requests, which is the shortest."""
    rules: list[_Rule] = []
    burst = given.get("burst")
    for name, amount in given.items():
        unit, separator, window = name.rpartition("_per_")
        if separator and not isinstance(amount, str):
            own = burst if unit == "requests" and not isinstance(burst, str) else None
            burst = None if own is not None else burst
            rules.append((unit, amount, _WINDOWS[window], own))
    return rules, algorithm == "sliding_window"
